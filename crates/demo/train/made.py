"""Conversations made up by a program: arithmetic, JSON from a schema, tool calls, small talk, and
the functions that are usually asked for first. All wording is ours."""

import json
import random

from basics import BASICS
from chat import fenced, reply, user
from smalltalk import GREETINGS, QUESTIONS

FIRST = """Alice Bob Carla David Emma Felix Grace Hugo Ines Jonas Kira Leo Mia Noah Olga Paul Rosa
    Sam Tina Uwe Vera Will Xenia Yara Zoe Anna Ben Clara Daniel Eva Frank Greta Henry Iris Jack Lena
    Max Nina Oscar Petra""".split()
CITIES = """Paris London Berlin Madrid Rome Vienna Oslo Lisbon Prague Dublin Athens Warsaw Tokyo
    Sydney Toronto Chicago Boston Lima Cairo Delhi Seoul Zurich Milan Porto Lyon Hamburg Munich
    Denver Dallas Kyoto""".split()
COLOURS = "red green blue yellow black white orange purple brown grey pink".split()
THINGS = """book lamp chair table phone bag bottle pencil shirt bicycle clock cup plate mirror
    camera keyboard jacket ticket box door""".split()
UNITS = ["celsius", "fahrenheit"]


def arithmetic(chance):
    """A sum, difference or product, with the steps as thinking if that is on."""
    sign = chance.choice("+++--*")
    a, b = chance.randrange(1, 100), chance.randrange(1, 100)
    if sign == "*":
        a, b = chance.randrange(2, 13), chance.randrange(2, 13)
    elif chance.random() < 0.25:
        a, b = chance.randrange(100, 1000), chance.randrange(1, 100)
    if sign == "-" and b > a:
        a, b = b, a
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    request = chance.choice(
        (
            f"What is {a} {sign} {b}?",
            f"What is {a} {word} {b}?",
            f"Compute {a} {sign} {b}.",
            f"{a} {sign} {b} = ?",
            f"Calculate {a} {word} {b}.",
        )
    )
    answer = f"{a} {sign} {b} = {value}"
    thought = None
    if chance.random() < 0.35:
        thought = steps(a, b, sign, value)
    return {"messages": [user(request), reply(answer, thought)]}


def steps(a, b, sign, value):
    if sign == "*":
        return f"{a} times {b} is {value}."
    tens, ones = b // 10 * 10, b % 10
    middle = a + tens if sign == "+" else a - tens
    return f"{a} {sign} {tens} = {middle}. {middle} {sign} {ones} = {value}."


def a_person(chance):
    return {
        "name": chance.choice(FIRST),
        "age": chance.randrange(18, 90),
        "city": chance.choice(CITIES),
    }


def an_article(chance):
    return {
        "item": chance.choice(THINGS),
        "colour": chance.choice(COLOURS),
        "price": chance.randrange(1, 200),
        "in_stock": chance.random() < 0.5,
    }


def a_booking(chance):
    return {
        "guest": chance.choice(FIRST),
        "city": chance.choice(CITIES),
        "nights": chance.randrange(1, 15),
        "rooms": chance.randrange(1, 4),
    }


def said(value):
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def structured(chance):
    """JSON from named values, or from a schema and a sentence."""
    record = chance.choice((a_person, an_article, a_booking))(chance)
    keys = list(record)
    if chance.random() < 0.3:
        keys = chance.sample(keys, len(keys) - 1)
        record = {key: record[key] for key in keys}
    listed = ", ".join(f"{key} {said(value)}" for key, value in record.items())
    kinds = {str: "string", int: "integer", bool: "boolean"}
    if chance.random() < 0.5:
        request = chance.choice(
            (
                f"Give me JSON with {listed}.",
                f"Write this as a JSON object: {listed}",
                f"Turn this into JSON: {listed}.",
            )
        )
    else:
        schema = {
            "type": "object",
            "properties": {key: {"type": kinds[type(value)]} for key, value in record.items()},
            "required": keys,
        }
        request = f"Answer with JSON of this schema: {json.dumps(schema)}\n{listed}"
    return {"messages": [user(request), reply(json.dumps(record))]}


def tool(name, description, properties, required=None):
    schema = {"type": "object", "properties": properties}
    schema["required"] = list(properties) if required is None else required
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


def text(description, **more):
    return {"type": "string", "description": description, **more}


def number(description):
    return {"type": "integer", "description": description}


# (tool, what may be asked, its arguments, what it answers, what is said then)
def tool_uses(chance):
    city, other = chance.sample(CITIES, 2)
    name, item = chance.choice(FIRST), chance.choice(THINGS)
    a, b, small = chance.randrange(2, 99), chance.randrange(2, 99), chance.randrange(1, 12)
    degrees, unit = chance.randrange(-5, 35), chance.choice(UNITS)
    file = f"{item}s.{chance.choice(['txt', 'csv', 'md', 'json', 'py'])}"
    total = a + b
    weather = tool(
        chance.choice(["get_weather", "weather", "current_weather"]),
        chance.choice(["Current weather of a city.", "Get the weather of a city."]),
        {"city": text("The city."), "unit": text("Unit of degrees.", enum=UNITS)},
        ["city"],
    )
    asked_unit = chance.random() < 0.3
    yield (
        weather,
        [f"What is the weather in {city}?", f"How warm is it in {city}?", f"Weather in {city}?"]
        if not asked_unit
        else [f"How many degrees {unit} is it in {city}?", f"Weather in {city} in {unit}?"],
        {"city": city} | ({"unit": unit} if asked_unit else {}),
        {"degrees": degrees},
        f"It is {degrees} degrees in {city}.",
    )
    yield (
        tool("add", "Add two numbers.", {"a": number("First."), "b": number("Second.")}),
        [f"Add {a} and {b}.", f"What is {a} plus {b}?", f"Use the tool to add {a} and {b}."],
        {"a": a, "b": b},
        {"result": total},
        f"The result is {total}.",
    )
    yield (
        tool("read_file", "Read a text file.", {"path": text("Path of the file.")}),
        [f"Read {file}.", f"What is in the file {file}?", f"Show me {file}."],
        {"path": file},
        {"text": f"a {item}"},
        f"The file {file} says: a {item}",
    )
    yield (
        tool("send_message", "Send a message.", {"to": text("To whom."), "text": text("What.")}),
        [f"Tell {name} that the {item} is here.", f"Send {name} the message: the {item} is here"],
        {"to": name, "text": f"the {item} is here"},
        {"sent": True},
        f"The message to {name} is sent.",
    )
    yield (
        tool(
            "book_train",
            "Book a train.",
            {"start": text("From."), "end": text("To."), "seats": number("How many.")},
        ),
        [
            f"Book {small} seats from {city} to {other}.",
            f"I need a train from {city} to {other} for {small} people.",
        ],
        {"start": city, "end": other, "seats": small},
        {"booked": True},
        f"The train from {city} to {other} is booked, {small} seats.",
    )
    yield (
        tool(
            "search",
            "Search the shop.",
            {"query": text("What for."), "limit": number("Most.")},
            ["query"],
        ),
        [f"Search for a {item}.", f"Find a {item} in the shop.", f"Is there a {item}?"],
        {"query": item},
        {"found": small},
        f"There are {small} results for {item}.",
    )
    yield (
        tool("set_timer", "Set a timer.", {"minutes": number("Minutes.")}),
        [
            f"Set a timer for {small} minutes.",
            f"Wake me in {small} minutes.",
            f"Timer, {small} minutes",
        ],
        {"minutes": small},
        {"set": True},
        f"The timer is set for {small} minutes.",
    )
    yield (
        tool("get_time", "Time of day in a city.", {"city": text("The city.")}),
        [f"What time is it in {city}?", f"Tell me the time in {city}."],
        {"city": city},
        {"time": f"{small}:{a % 60:02}"},
        f"It is {small}:{a % 60:02} in {city}.",
    )


def tool_call(chance):
    """A call, perhaps with what came back; or tools at hand and none needed."""
    uses = list(tool_uses(chance))
    chance.shuffle(uses)
    used, *rest = uses
    function, requests, arguments, result, answer = used
    tools = [function] + [use[0] for use in rest[: chance.randrange(3)]]
    chance.shuffle(tools)
    if chance.random() < 0.12:
        return greeting(chance) | {"tools": tools}
    name = function["function"]["name"]
    thought = f"{name} can answer this." if chance.random() < 0.2 else None
    messages = [user(chance.choice(requests)), reply("", thought, [(name, arguments)])]
    if chance.random() < 0.5:
        messages += [{"role": "tool", "content": json.dumps(result)}, reply(answer)]
    return {"messages": messages, "tools": tools}


def greeting(chance):
    requests, answers = chance.choice(GREETINGS)
    return {"messages": [user(chance.choice(requests)), reply(chance.choice(answers))]}


def question(chance):
    requests, answer = chance.choice(QUESTIONS)
    return {"messages": [user(chance.choice(requests)), reply(answer)]}


def basic(chance):
    """A function that is often asked for, under several names."""
    names, requests, code = chance.choice(BASICS)
    name = chance.choice(names)
    request = chance.choice(requests)
    request = chance.choice(
        (
            f"Write a Python function that {request}.",
            f"Write a function `{name}` that {request}.",
            f"Please write a Python function that {request}.",
            f"I need a function that {request}.",
            f"Can you write a Python function which {request}?",
            f"Show me a Python function that {request}.",
            f"Python function that {request}",
        )
    )
    if "`" not in request:
        name = names[0]
    thought = f"A function {name} that {requests[0]}." if chance.random() < 0.15 else None
    return {"messages": [user(request), reply(fenced(code.replace("NAME", name)), thought)]}


MAKERS = (
    (arithmetic, 0.22),
    (structured, 0.2),
    (tool_call, 0.26),
    (basic, 0.2),
    (greeting, 0.06),
    (question, 0.06),
)


def conversation(seed):
    """The conversation of a seed; now and then two or three in one."""
    chance = random.Random(seed)
    makers, shares = zip(*MAKERS, strict=True)
    [maker] = chance.choices(makers, shares)
    made = maker(chance) | {"kind": maker.__name__}
    plain = (arithmetic, structured, basic, greeting, question)
    while "tools" not in made and chance.random() < 0.2:
        made["messages"] = made["messages"] + chance.choice(plain)(chance)["messages"]
    if "tools" not in made and chance.random() < 0.1:
        system = chance.choice(SYSTEMS)
        made["messages"] = [{"role": "system", "content": system}] + made["messages"]
    return made


SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You write Python.",
    "Answer briefly.",
    "You are a coding assistant. Answer with code.",
)
