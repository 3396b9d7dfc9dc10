"""Targets for atheris, which steers by what code an input reaches: TARGET FOLDER [options of libFuzzer]."""

import logging
import sys
from pathlib import Path

import atheris

target, folder = sys.argv[1], Path(sys.argv[2])
with atheris.instrument_imports(include=["sept", "json"]):
    import json

    import fuzzing

    from sept import durable, grading, verify

logging.disable()


def problems(data):
    options = fuzzing.OPTIONS[data[0] % len(fuzzing.OPTIONS)] if data else ""
    suffix = (".jsonl", ".json", ".csv")[data[1] % 3] if len(data) > 1 else ".jsonl"
    fuzzing.check_problem_file(folder, suffix, data[2:], options)


def answers(data):
    """Everything of grading but the algebra itself, which the soak runs in its own processes."""
    text = data.decode("utf-8", "replace")
    box = grading.last_boxed(text)
    assert box is None or box in text
    verify._elements(verify._plain(text))
    fuzzing.check_grading([(text, text), (text, "1")], "file")


def config_(data):
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(given, dict):
        fuzzing.check_config(given)
    fuzzing.check_name(data.decode("utf-8", "replace"))


def state(data):
    (folder / "state.json").write_bytes(data)
    try:
        durable.unseal(folder)
    except ValueError as error:
        assert str(error)
    else:
        raise AssertionError("no seal can be guessed")


def main():
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = {
        "problems": [b'a\x00{"prompt": "1+1?", "answer": "2"}\n', b"a\x02prompt,answer\n1+1?,2\n"],
        "answers": [text.encode() for text in fuzzing.CORPUS],
        "config": [b'{"lr": 0.1, "rounds": 3}', b"0:1:0.1", b"toy:test:add3"],
        "state": [b'{"version": 1, "sha256": {}, "seal": ""}'],
    }
    for i, seed in enumerate(seeds[target]):
        (corpus / str(i)).write_bytes(seed)
    of = {"problems": problems, "answers": answers, "config": config_, "state": state}[target]
    atheris.Setup([sys.argv[0], *sys.argv[3:], str(corpus)], of)
    atheris.Fuzz()


main()
