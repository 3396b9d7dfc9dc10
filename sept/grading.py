"""Is this answer right?"""

from __future__ import annotations

from .problems import Problem


def grade(response: str, finished: bool, problem: Problem, world: str) -> bool:
    """True if `response` answers `problem`.

    Embedded world: what follows the last `#`, exactly, and the answer must have ended by itself.
    Files: the last balanced \\boxed{...} if there is one, else the last line, compared as strings
    without surrounding white space.
    """
    if world == "toy":
        from .toy import is_correct

        return is_correct(response, finished, problem.answer)
    boxed = last_boxed(response)
    lines = response.strip().splitlines()
    given = boxed if boxed is not None else (lines[-1] if lines else "")
    return given.strip() == problem.answer.strip()


def last_boxed(text: str) -> str | None:
    """Content of the last complete \\boxed{...} with balanced braces, or None.

    >>> last_boxed(r"so \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    end = len(text)
    while (start := text.rfind("\\boxed{", 0, end)) >= 0:
        depth = 0
        for i in range(start + 6, len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start + 7 : i]
        end = start
    return None
