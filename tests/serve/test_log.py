"""The server's log: complete where it is read, and no burden where it is not."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time

from foveate.serve.run import JsonFormatter, LogWriter


def open_log(writer: LogWriter) -> logging.Logger:
    log = logging.Logger("served")
    log.addHandler(writer)
    return log


def test_all_lines_are_written_in_order() -> None:
    stream = io.StringIO()
    writer = LogWriter(stream)
    log = open_log(writer)
    for number in range(1000):
        log.info("%d", number)
    writer.close()
    assert stream.getvalue().splitlines() == [str(number) for number in range(1000)]


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_what_was_dropped_is_counted() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(os.fdopen(writing, "w"), max_lines=8)
    log = open_log(writer)
    begin = time.monotonic()
    for number in range(200):
        log.info("%d %s", number, "x" * 2000)
    assert time.monotonic() - begin < 5, "whoever logs has waited for the pipe"
    lines: list[str] = []
    reader = os.fdopen(reading)
    thread = threading.Thread(target=lambda: lines.extend(reader))
    thread.start()
    num_last = 0
    while not any(line.startswith("last") for line in lines):
        log.info("last")
        num_last += 1
        time.sleep(0.01)
    writer.close()
    writer.stream.close()
    thread.join(10)
    reader.close()
    counts = [json.loads(line)["dropped_lines"] for line in lines if line.startswith("{")]
    written = [int(line.split()[0]) for line in lines if line[0].isdigit()]
    assert written == sorted(set(written))
    assert 8 <= len(written) < 200
    assert sum(counts) + writer.num_dropped == 200 + num_last - (len(lines) - len(counts))


def test_every_line_is_json() -> None:
    stream = io.StringIO()
    writer = LogWriter(stream)
    writer.setFormatter(JsonFormatter())
    request = json.dumps({"status": 200, "path": "/health"})
    for name, level, text in (
        ("foveate.serve", logging.INFO, request),
        ("foveate.serve", logging.WARNING, 'a call failed: "x"\nand more'),
        ("uvicorn.error", logging.INFO, "Started server process [%d]"),
    ):
        writer.handle(logging.LogRecord(name, level, "", 0, text, (7,) if "%d" in text else (), None))
    try:
        raise LookupError("of the application")
    except LookupError as error:
        information = (LookupError, error, error.__traceback__)
        writer.handle(logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception", (), information))
    writer.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0] == json.loads(request)
    assert lines[1] == {"level": "warning", "message": 'a call failed: "x"', "trace": "and more"}
    assert lines[2] == {"level": "info", "message": "Started server process [7]"}
    assert (lines[3]["level"], lines[3]["message"]) == ("error", "Exception")
    assert "of the application" in lines[3]["trace"]
