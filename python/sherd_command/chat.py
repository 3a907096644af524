"""Chats as text: a model's chat template, and which characters of its text the assistant wrote.

A template is Jinja as Hugging Face renders it (sandboxed, trim_blocks, lstrip_blocks, loop controls, raise_exception,
strftime_now, the special tokens by name). What the assistant wrote is found in one of two ways:

- A template that marks it says so itself: {% generation %} ... {% endgeneration %}.
- Otherwise by prefixes. What the template makes of the messages before an answer, with add_generation_prompt, is what
  the model is given; what it makes of the messages up to and with the answer is that and the answer. The difference is
  what the assistant says with what ends its turn; blanks behind a token that ends it ("<|im_end|>\\n") are the
  template's. A template for which this does not hold (one that drops earlier thoughts) is an error.
"""
from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import re
from typing import Any

from .errors import Mistake, shown

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclasses.dataclass
class Rendered:
    text: str
    spans: list[tuple[int, int]] | None  # characters that are targets; None: all
    with_special: bool  # the tokenizer adds its own special tokens; a template has written them itself
    open_end: bool = False  # nothing in the text ends the last answer: the separator behind it does


class Template:
    def __init__(self, source: str, path: pathlib.Path, variables: dict[str, str]):
        """Raises Mistake for a broken template, and without jinja2."""
        try:
            import jinja2
        except ImportError:
            raise Mistake("no Python package jinja2", "it, for the chat template", "pip install jinja2") from None
        self.path = path
        self.marked = MARKED.search(source) is not None
        self.variables = variables
        self.environment = make_environment()
        try:
            self.template = self.environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise Mistake(f"a broken chat template in {path} (its line {error.lineno}: {error})", "a Jinja template",
                          "the template that came with the model") from None

    def render(self, messages: list[dict], tools: Any, where: str, prompt: bool = False) -> str:
        return self.render_marked(messages, tools, where, prompt)[0]

    def render_marked(self, messages: list[dict], tools: Any, where: str,
                      prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The text, and what the template marks in it."""
        state = self.environment.marks = Marks()
        try:
            for block in self.template.generate(messages=messages, tools=tools, documents=None,
                                                add_generation_prompt=prompt, **self.variables):
                state.blocks.append(block)
                state.length += len(block)
        except Exception as error:  # a template is a program: anything may come out of it
            raise Mistake(f"{where}: a chat that the template in {self.path} refuses ({error or type(error).__name__})",
                          "one that it renders", "to leave this chat out, or another template") from None
        return "".join(state.blocks), state.spans


class Marks:
    """What has been rendered so far, and which parts of it stand between {% generation %} and {% endgeneration %}."""

    def __init__(self):
        self.blocks: list[str] = []
        self.length = 0
        self.spans: list[tuple[int, int]] = []


def make_environment():
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller):
            text, marks = caller(), self.environment.marks
            marks.spans.append((marks.length, marks.length + len(text)))
            return text

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment


def load_template(folder: pathlib.Path, tokenizer_config: dict) -> Template | None:
    """The folder's template: chat_template.jinja, or else "chat_template" in tokenizer_config.json (the one named
    "default" where there are several). None if there is none."""
    variables = {key: token_text(value) for key, value in tokenizer_config.items()
                 if key.endswith("_token") and token_text(value) is not None}
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return Template(path.read_text(encoding="utf-8"), path, variables)
        except UnicodeDecodeError as error:
            raise Mistake(f"{path}, which is not UTF-8 ({error.reason})", "a Jinja template",
                          "the template that came with the model") from None
    path = folder / "tokenizer_config.json"
    source = tokenizer_config.get("chat_template")
    if isinstance(source, list):
        named = {each.get("name"): each.get("template") for each in source if isinstance(each, dict)}
        if "default" not in named:
            raise Mistake(f"the chat templates {shown(list(named))} in {path}", "one that is named 'default'",
                          "to write the one that you mean to chat_template.jinja")
        source = named["default"]
    if source is not None and not isinstance(source, str):
        raise Mistake(f"{shown(source)} for 'chat_template' in {path}", "a Jinja template",
                      "the template that came with the model")
    return None if source is None else Template(source, path, variables)


def token_text(value: Any) -> str | None:
    """A special token in tokenizer_config.json is a text, or an object with it."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


class Chats:
    """Renders the chats of one run."""

    def __init__(self, folder: pathlib.Path, tokenizer_config: dict, added_tokens: list[str], train_on: str):
        self.folder = folder
        self.template = load_template(folder, tokenizer_config)
        self.enders = tuple(token for token in added_tokens if token.strip())  # what can end a turn
        self.train_on = train_on

    def pair(self, record: dict, where: str) -> Rendered:
        """A prompt and its completion: two turns of a chat; without a template, one text."""
        for key in ("prompt", "completion"):
            if not isinstance(record[key], str):
                raise Mistake(f"{where}: {shown(record[key])} for '{key}'", "a text",
                              '{"messages": [...]} for a prompt of several messages')
        prompt, completion = record["prompt"], record["completion"]
        if self.template:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return self.chat({"messages": messages}, where)
        text = prompt + completion
        if self.train_on == "all":
            return Rendered(text, None, with_special=True)
        return Rendered(text, [(len(prompt), len(text))], with_special=True,
                        open_end=not completion.endswith(self.enders))

    def chat(self, record: dict, where: str) -> Rendered:
        messages, tools = record["messages"], record.get("tools")
        check_messages(messages, tools, where)
        if not self.template:
            raise Mistake(f"{where}: a chat, and no chat template in {self.folder}",
                          "chat_template.jinja, or 'chat_template' in tokenizer_config.json",
                          'the folder of a chat model, or {"prompt": ..., "completion": ...}')
        if self.train_on == "all":
            return Rendered(self.template.render(messages, tools, where), None, with_special=False)
        if self.template.marked:
            text, spans = self.template.render_marked(messages, tools, where)
        else:
            text, spans = self.by_prefixes(messages, tools, where)
        if not spans:
            raise Mistake(f"{where}: a chat in which the assistant says nothing", "a message of the assistant",
                          "to leave this chat out, or --train-on all")
        return Rendered(text, spans, with_special=False,
                        open_end=spans[-1][1] == len(text) and not text[spans[-1][0]:].rstrip().endswith(self.enders))

    def by_prefixes(self, messages: list[dict], tools: Any, where: str) -> tuple[str, list[tuple[int, int]]]:
        text = self.template.render(messages, tools, where)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.template.render(messages[:i], tools, where, prompt=True)
            whole = self.template.render(messages[:i + 1], tools, where)
            if not (text.startswith(before) and text.startswith(whole) and len(before) <= len(whole)):
                raise Mistake(
                    f"{where}: a chat whose text up to message {i + 1} of {len(messages)} is not how its whole text "
                    f"begins (by the template in {self.template.path})", "a template that keeps what it has written",
                    "{% generation %} and {% endgeneration %} around the assistant's text in it, or --train-on all")
            spoken = whole.rstrip()
            end = len(spoken) if len(spoken) > len(before) and spoken.endswith(self.enders) else len(whole)
            spans.append((len(before), end))
        return text, spans


def check_messages(messages: Any, tools: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise Mistake(f"{where}: {shown(messages)} for 'messages'", "a list of messages",
                      '[{"role": "user", "content": ...}, ...]')
    if tools is not None and not isinstance(tools, list):
        raise Mistake(f"{where}: {shown(tools)} for 'tools'", "a list of JSON schemas", "null")
    for number, message in enumerate(messages, 1):
        place = f"{where}: message {number}"
        if not isinstance(message, dict) or "role" not in message:
            raise Mistake(f"{place} is {shown(message)}", "an object with 'role' and 'content'",
                          '{"role": "user", "content": ...}')
        if message["role"] not in ROLES:
            raise Mistake(f"{place} has the role {shown(message['role'])}", "one of " + ", ".join(ROLES), "'user'")
        content = message.get("content")
        if not isinstance(content, (str, list)) and not (content is None and message.get("tool_calls")):
            raise Mistake(f"{place} has {shown(content)} for 'content'", "a text", '{"role": ..., "content": "..."}')
