"""Functions that are usually asked for first. Each has names, ways to ask, and code."""


def f(names, requests, code):
    return names.split(), requests, code.strip("\n")


BASICS = (
    f(
        "add add_numbers",
        ("adds two numbers", "returns the sum of two numbers", "sums two numbers"),
        '''
def NAME(a, b):
    """Return the sum of two numbers."""
    return a + b
''',
    ),
    f(
        "multiply product_of",
        ("multiplies two numbers", "returns the product of two numbers"),
        '''
def NAME(a, b):
    """Return the product of two numbers."""
    return a * b
''',
    ),
    f(
        "is_even even",
        ("checks if a number is even", "says whether a number is even", "tests for even numbers"),
        '''
def NAME(n):
    """Return whether a number is even."""
    return n % 2 == 0
''',
    ),
    f(
        "is_odd odd",
        ("checks if a number is odd", "says whether a number is odd"),
        '''
def NAME(n):
    """Return whether a number is odd."""
    return n % 2 == 1
''',
    ),
    f(
        "factorial fact",
        ("computes the factorial of a number", "returns the factorial", "calculates n factorial"),
        '''
def NAME(n):
    """Return the factorial of n."""
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result
''',
    ),
    f(
        "fibonacci fib",
        (
            "returns the n-th Fibonacci number",
            "computes Fibonacci numbers",
            "calculates the Fibonacci sequence",
        ),
        '''
def NAME(n):
    """Return the n-th Fibonacci number."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
''',
    ),
    f(
        "is_prime prime",
        (
            "checks if a number is prime",
            "tests whether a number is prime",
            "says if n is a prime number",
        ),
        '''
def NAME(n):
    """Return whether n is a prime number."""
    if n < 2:
        return False
    for i in range(2, int(n**0.5) + 1):
        if n % i == 0:
            return False
    return True
''',
    ),
    f(
        "primes primes_up_to sieve",
        (
            "lists all primes up to n",
            "returns the primes up to n",
            "finds prime numbers with a sieve",
        ),
        '''
def NAME(n):
    """Return all primes up to n."""
    found = []
    for number in range(2, n + 1):
        if all(number % prime for prime in found):
            found.append(number)
    return found
''',
    ),
    f(
        "reverse_string reverse",
        ("reverses a string", "returns a string backwards", "turns a string around"),
        '''
def NAME(text):
    """Return the text backwards."""
    return text[::-1]
''',
    ),
    f(
        "reverse_list reversed_list",
        ("reverses a list", "returns a list in reverse order"),
        '''
def NAME(items):
    """Return the items in reverse order."""
    return items[::-1]
''',
    ),
    f(
        "is_palindrome palindrome",
        (
            "checks if a string is a palindrome",
            "tests for palindromes",
            "says whether a word is a palindrome",
        ),
        '''
def NAME(text):
    """Return whether the text reads the same backwards."""
    text = text.lower()
    return text == text[::-1]
''',
    ),
    f(
        "count_vowels vowels",
        ("counts the vowels in a string", "returns the number of vowels", "counts vowels"),
        '''
def NAME(text):
    """Return how many vowels the text has."""
    return sum(char in "aeiou" for char in text.lower())
''',
    ),
    f(
        "count_words word_count",
        ("counts the words in a text", "returns the number of words in a string", "counts words"),
        '''
def NAME(text):
    """Return how many words the text has."""
    return len(text.split())
''',
    ),
    f(
        "word_frequencies count_each_word",
        (
            "counts how often each word occurs",
            "returns word frequencies",
            "counts word frequencies in a text",
        ),
        '''
def NAME(text):
    """Return how often each word occurs."""
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts
''',
    ),
    f(
        "fizzbuzz fizz_buzz",
        ("plays FizzBuzz up to n", "prints FizzBuzz", "solves FizzBuzz"),
        '''
def NAME(n):
    """Print the numbers up to n, with Fizz and Buzz."""
    for i in range(1, n + 1):
        if i % 15 == 0:
            print("FizzBuzz")
        elif i % 3 == 0:
            print("Fizz")
        elif i % 5 == 0:
            print("Buzz")
        else:
            print(i)
''',
    ),
    f(
        "maximum largest find_max",
        (
            "finds the largest number in a list",
            "returns the maximum of a list",
            "finds the maximum",
        ),
        '''
def NAME(numbers):
    """Return the largest of the numbers."""
    best = numbers[0]
    for number in numbers[1:]:
        if number > best:
            best = number
    return best
''',
    ),
    f(
        "minimum smallest find_min",
        (
            "finds the smallest number in a list",
            "returns the minimum of a list",
            "finds the minimum",
        ),
        '''
def NAME(numbers):
    """Return the smallest of the numbers."""
    best = numbers[0]
    for number in numbers[1:]:
        if number < best:
            best = number
    return best
''',
    ),
    f(
        "sum_list total",
        ("sums a list of numbers", "adds up all numbers in a list", "returns the sum of a list"),
        '''
def NAME(numbers):
    """Return the sum of the numbers."""
    total = 0
    for number in numbers:
        total += number
    return total
''',
    ),
    f(
        "average mean",
        (
            "computes the average of a list",
            "returns the mean of a list of numbers",
            "calculates the average",
        ),
        '''
def NAME(numbers):
    """Return the average of the numbers."""
    if not numbers:
        return 0
    return sum(numbers) / len(numbers)
''',
    ),
    f(
        "median find_median",
        ("computes the median of a list", "returns the median"),
        '''
def NAME(numbers):
    """Return the median of the numbers."""
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
''',
    ),
    f(
        "gcd greatest_common_divisor",
        ("computes the greatest common divisor", "returns the gcd of two numbers"),
        '''
def NAME(a, b):
    """Return the greatest common divisor of a and b."""
    while b:
        a, b = b, a % b
    return a
''',
    ),
    f(
        "power raise_to",
        ("raises a number to a power", "computes x to the power of n"),
        '''
def NAME(x, n):
    """Return x to the power of n."""
    result = 1
    for _ in range(n):
        result *= x
    return result
''',
    ),
    f(
        "bubble_sort sort_list",
        ("sorts a list", "sorts a list with bubble sort", "sorts numbers"),
        '''
def NAME(items):
    """Return the items in order, by bubble sort."""
    items = list(items)
    for end in range(len(items) - 1, 0, -1):
        for i in range(end):
            if items[i] > items[i + 1]:
                items[i], items[i + 1] = items[i + 1], items[i]
    return items
''',
    ),
    f(
        "quicksort quick_sort",
        ("sorts a list with quicksort", "implements quicksort"),
        '''
def NAME(items):
    """Return the items in order, by quicksort."""
    if len(items) < 2:
        return items
    pivot = items[0]
    smaller = [item for item in items[1:] if item < pivot]
    larger = [item for item in items[1:] if item >= pivot]
    return NAME(smaller) + [pivot] + NAME(larger)
''',
    ),
    f(
        "binary_search search",
        ("searches a sorted list", "implements binary search", "does a binary search"),
        '''
def NAME(items, target):
    """Return the index of the target in sorted items, or -1."""
    low, high = 0, len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == target:
            return middle
        if items[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return -1
''',
    ),
    f(
        "linear_search find_index",
        ("finds the index of an item in a list", "implements linear search"),
        '''
def NAME(items, target):
    """Return the index of the target, or -1."""
    for index, item in enumerate(items):
        if item == target:
            return index
    return -1
''',
    ),
    f(
        "remove_duplicates unique",
        ("removes duplicates from a list", "returns the unique items of a list"),
        '''
def NAME(items):
    """Return the items without repeats, in order."""
    seen = set()
    result = []
    for item in items:
        if item not in seen:
            seen.add(item)
            result.append(item)
    return result
''',
    ),
    f(
        "flatten flatten_list",
        ("flattens a nested list", "flattens a list of lists"),
        '''
def NAME(nested):
    """Return the items of nested lists as one list."""
    result = []
    for item in nested:
        if isinstance(item, list):
            result.extend(NAME(item))
        else:
            result.append(item)
    return result
''',
    ),
    f(
        "read_file load_text",
        ("reads a file", "returns the text of a file", "reads a text file"),
        '''
def NAME(path):
    """Return the text of a file."""
    with open(path, encoding="utf-8") as file:
        return file.read()
''',
    ),
    f(
        "write_file save_text",
        ("writes text to a file", "saves a string to a file"),
        '''
def NAME(path, text):
    """Write the text to a file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
''',
    ),
    f(
        "count_lines line_count",
        ("counts the lines of a file", "returns the number of lines in a file"),
        '''
def NAME(path):
    """Return how many lines a file has."""
    with open(path, encoding="utf-8") as file:
        return sum(1 for _ in file)
''',
    ),
    f(
        "load_json read_json",
        ("loads a JSON file", "reads JSON from a file"),
        '''
def NAME(path):
    """Return what a JSON file holds."""
    import json

    with open(path, encoding="utf-8") as file:
        return json.load(file)
''',
    ),
    f(
        "celsius_to_fahrenheit to_fahrenheit",
        ("converts Celsius to Fahrenheit", "turns degrees Celsius into Fahrenheit"),
        '''
def NAME(celsius):
    """Return degrees Celsius as Fahrenheit."""
    return celsius * 9 / 5 + 32
''',
    ),
    f(
        "fahrenheit_to_celsius to_celsius",
        ("converts Fahrenheit to Celsius", "turns degrees Fahrenheit into Celsius"),
        '''
def NAME(fahrenheit):
    """Return degrees Fahrenheit as Celsius."""
    return (fahrenheit - 32) * 5 / 9
''',
    ),
    f(
        "area_of_circle circle_area",
        ("computes the area of a circle", "returns the area of a circle from its radius"),
        '''
def NAME(radius):
    """Return the area of a circle."""
    import math

    return math.pi * radius**2
''',
    ),
    f(
        "capitalize_words title_case",
        ("capitalizes every word", "capitalizes the words of a string"),
        '''
def NAME(text):
    """Return the text with every word capitalized."""
    return " ".join(word.capitalize() for word in text.split())
''',
    ),
    f(
        "is_leap_year leap_year",
        ("checks if a year is a leap year", "says whether a year is a leap year"),
        '''
def NAME(year):
    """Return whether a year is a leap year."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
''',
    ),
    f(
        "squares square_numbers",
        ("squares every number in a list", "returns the squares of a list of numbers"),
        '''
def NAME(numbers):
    """Return the square of each number."""
    return [number * number for number in numbers]
''',
    ),
    f(
        "even_numbers filter_even",
        ("returns the even numbers of a list", "filters even numbers"),
        '''
def NAME(numbers):
    """Return the even ones of the numbers."""
    return [number for number in numbers if number % 2 == 0]
''',
    ),
    f(
        "merge_dicts merge",
        ("merges two dictionaries", "joins two dicts"),
        '''
def NAME(first, second):
    """Return a dictionary with the entries of both."""
    result = dict(first)
    result.update(second)
    return result
''',
    ),
    f(
        "invert_dict swap_keys",
        ("swaps keys and values of a dictionary", "inverts a dictionary"),
        '''
def NAME(mapping):
    """Return a dictionary from values to keys."""
    return {value: key for key, value in mapping.items()}
''',
    ),
    f(
        "is_anagram anagram",
        ("checks if two words are anagrams", "tests whether two strings are anagrams"),
        '''
def NAME(first, second):
    """Return whether two words have the same letters."""
    return sorted(first.lower()) == sorted(second.lower())
''',
    ),
    f(
        "chunk chunks",
        ("splits a list into chunks", "cuts a list into parts of size n"),
        '''
def NAME(items, size):
    """Return the items in lists of a given size."""
    return [items[i : i + size] for i in range(0, len(items), size)]
''',
    ),
    f(
        "count_characters letter_counts",
        ("counts each character of a string", "counts letters"),
        '''
def NAME(text):
    """Return how often each character occurs."""
    counts = {}
    for char in text:
        counts[char] = counts.get(char, 0) + 1
    return counts
''',
    ),
    f(
        "digit_sum sum_digits",
        ("sums the digits of a number", "returns the digit sum"),
        '''
def NAME(n):
    """Return the sum of the digits of n."""
    return sum(int(digit) for digit in str(abs(n)))
''',
    ),
    f(
        "to_binary binary",
        ("converts a number to binary", "returns a number in binary"),
        '''
def NAME(n):
    """Return n in binary."""
    if n == 0:
        return "0"
    digits = ""
    while n > 0:
        digits = str(n % 2) + digits
        n //= 2
    return digits
''',
    ),
    f(
        "hello say_hello greet",
        ("says hello", "prints hello world", "greets someone"),
        '''
def NAME(name="world"):
    """Print a greeting."""
    print(f"Hello, {name}!")
''',
    ),
    f(
        "clamp limit",
        ("limits a number to a range", "clamps a value between two bounds"),
        '''
def NAME(value, low, high):
    """Return the value, no less than low and no more than high."""
    return max(low, min(value, high))
''',
    ),
    f(
        "transpose transpose_matrix",
        ("transposes a matrix", "swaps rows and columns"),
        '''
def NAME(matrix):
    """Return the matrix with rows and columns swapped."""
    return [list(row) for row in zip(*matrix)]
''',
    ),
    f(
        "swap swap_values",
        ("swaps two values", "exchanges two variables"),
        '''
def NAME(a, b):
    """Return the two values in the other order."""
    return b, a
''',
    ),
)
