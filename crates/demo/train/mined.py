"""Conversations mined from source: request to function, beginning to whole, function to
explanation, small edits. Every code in a reply is code of the corpus, or a rename of it."""

import ast
import random
import re
import textwrap

from chat import fenced, reply, user

BODY_LINES = range(1, 17)
CODE_CHARS_MAX = 900
SUMMARY_CHARS = range(14, 130)

WRITE = (
    "Write a Python function `{signature}`. {summary}",
    "Write a Python function named `{name}`: {summary}",
    "Write the function `{signature}` in Python. {summary}",
    "Implement `{signature}` in Python. {summary}",
    "I need a Python function `{signature}`. {summary}",
    "Please write a Python function called `{name}`. {summary}",
    "{summary} Write this as a Python function `{signature}`.",
    "Write a function that does this: {summary}",
)
NAMED = (
    "Write a Python function `{signature}`.",
    "Write the function `{signature}` in Python.",
    "Implement `{signature}`.",
    "Write a Python function named `{name}`.",
)
COMPLETE = (
    "Complete this function:\n{code}",
    "Finish this Python function:\n{code}",
    "Write the body of this function:\n{code}",
)
EXPLAIN = (
    "What does this function do?\n{code}",
    "Explain this Python function:\n{code}",
    "Describe this code in a sentence:\n{code}",
)
RENAME = (
    "Rename `{old}` to `{new}` in this code:\n{code}",
    "In this function, change the name `{old}` to `{new}`:\n{code}",
)
DOCUMENT = (
    "Add a docstring to this function:\n{code}",
    "Document this function:\n{code}",
)
STRIP = ("Remove the docstring from this function:\n{code}",)
NAMES = """data items values result total count index text line name key value node path size start
    end left right first last other source target number entry record buffer width height""".split()


class Function:
    """A short function with a usable summary, dedented, its docstring apart."""

    def __init__(self, node, lines):
        self.name = node.name
        self.arguments = ast.unparse(node.args)
        documented = ast.get_docstring(node) is not None
        body = node.body[1:] if documented else node.body
        self.summary = summary_of(ast.get_docstring(node) or "")
        head = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))
        first = min(statement.lineno for statement in body)
        rest = lines[first - 1 : node.end_lineno]
        indent = " " * node.col_offset
        rest = [line.removeprefix(indent) for line in rest]
        self.head, self.body = head.rstrip(), "\n".join(rest).rstrip()

    @property
    def plain(self):
        return f"{self.head}\n{self.body}"

    @property
    def documented(self):
        return f"{self.begun}\n{self.body}"

    @property
    def begun(self):
        return f'{self.head}\n    """{self.summary}"""'


def summary_of(docstring):
    """The first sentence, or an empty string if it says nothing fit for a request."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph)[0]
    unfit = re.search(r":param|>>>|\\|\"\"\"|https?:|[{}<>]|@|\.\. |::|``", sentence)
    if unfit or len(sentence) not in SUMMARY_CHARS or not sentence[0].isalpha():
        return ""
    return (sentence[0].upper() + sentence[1:]).rstrip(" .:;,") + "."


def functions(text):
    """The functions of a file that are fit for a conversation."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue
        documented = ast.get_docstring(node) is not None
        body = node.body[1:] if documented else node.body
        if not body or node.lineno == node.body[0].lineno or node.name.startswith("__"):
            continue
        if documented and body[0].lineno <= node.body[0].end_lineno:
            continue
        stub = isinstance(body[0], ast.Pass | ast.Raise) or (
            isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
        )
        if stub or node.end_lineno - body[0].lineno + 1 not in BODY_LINES:
            continue
        function = Function(node, lines)
        if len(function.plain) > CODE_CHARS_MAX or not function.plain.isascii():
            continue
        try:
            ast.parse(function.plain)
        except SyntaxError:
            continue
        yield function


def write(function, random):
    request = random.choice(WRITE).format(
        name=function.name,
        signature=f"{function.name}({function.arguments})",
        summary=function.summary,
    )
    return "write", request, fenced(function.documented)


def named(function, random):
    signature = f"{function.name}({function.arguments})"
    request = random.choice(NAMED).format(name=function.name, signature=signature)
    return "named", request, fenced(function.plain)


def complete(function, random):
    request = random.choice(COMPLETE).format(code=fenced(function.begun))
    return "complete", request, fenced(function.documented)


def explain(function, random):
    request = random.choice(EXPLAIN).format(code=fenced(function.plain))
    return "explain", request, f"`{function.name}`: {function.summary}"


def document(function, random):
    request = random.choice(DOCUMENT).format(code=fenced(function.plain))
    return "document", request, fenced(function.documented)


def strip(function, random):
    request = random.choice(STRIP).format(code=fenced(function.documented))
    return "strip", request, fenced(function.plain)


def rename(function, random):
    words = sorted(set(re.findall(r"\b[a-z_]{2,20}\b", function.plain)))
    stored = {
        node.id
        for node in ast.walk(ast.parse(function.plain))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    candidates = sorted({function.name, *stored} & set(words))
    fresh = [name for name in NAMES if name not in words]
    if not candidates or not fresh:
        return None
    old, new = random.choice(candidates), random.choice(fresh)
    request = random.choice(RENAME).format(old=old, new=new, code=fenced(function.plain))
    return "rename", request, fenced(re.sub(rf"\b{old}\b", new, function.plain))


def conversations(text, seed):
    """The conversations of one file. Its caller drops functions that occur in other files too."""
    chance = random.Random(seed)
    for function in functions(text):
        found = []
        if function.summary:
            found.append(write(function, chance))
            if chance.random() < 0.5:
                found.append(write(function, chance))
            for kind, share in ((complete, 0.4), (explain, 0.4), (document, 0.2), (strip, 0.06)):
                if chance.random() < share:
                    found.append(kind(function, chance))
        elif chance.random() < 0.7:
            found.append(named(function, chance))
        if chance.random() < 0.08:
            found.append(rename(function, chance))
        for kind, request, answer in filter(None, found):
            messages = [user(request), reply(answer)]
            yield {"kind": kind, "code": function.body, "messages": messages}
