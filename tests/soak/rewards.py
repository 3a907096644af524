"""A reward for GRPO: letters."""


def letters(completions, **_):
    return [sum(c.isalpha() for c in (r[0]["content"] if isinstance(r, list) else r)) / 20 for r in completions]
