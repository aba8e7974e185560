"""A llama-server of llama.cpp as the one who answers: starting it, asking it, stopping it. Touches no file."""

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prompting
from grpo.exporting.exam import SAID
from grpo.model import decode
from grpo.model.errors import ModelError

ATTEMPT_SECONDS = 180  # for llama-server to load a model, and for one of its answers
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy between this machine and itself


@contextmanager
def serving(program: str, path: Path, context: int) -> Iterator[str]:
    """The address of a llama-server with this file. Raises ModelError when it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--ctx-size", str(context), "--parallel", "1"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [program, "--model", str(path), *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + ATTEMPT_SECONDS
            while True:
                try:
                    with DIRECT.open(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError as error:
                    if server.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        last = log.read().decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
                        raise ModelError(f"{program} does not run {path.name}: {last[0]}") from error
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def asked(address: str, what: str, **given: Any) -> Any:
    """A server's answer. Raises ModelError when there is none."""
    request = urllib.request.Request(
        f"{address}/{what}", json.dumps(given).encode(), {"Content-Type": "application/json"}
    )
    try:
        with DIRECT.open(request, timeout=ATTEMPT_SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        told = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
        raise ModelError(f"llama-server gives no answer to /{what}: {error} {told:.200}") from error


def served(address: str, tokenizer: Any) -> Callable[[Sequence[str], prompting.Inventory, bool], Sequence[str]]:
    """The greedy answers of a llama-server, which cuts the text into tokens itself."""
    greedy = {"temperature": 0, "top_k": 1, "repeat_penalty": 1, "n_predict": SAID.max_new_tokens}

    def answer(prompts: Sequence[str], inventory: prompting.Inventory, bound: bool) -> Sequence[str]:
        legal = [json.dumps(text) for text in prompting.answers(inventory)]
        rule = {"grammar": f"root ::= {' | '.join(legal)}"} if bound else {}
        chats = [decode.chat_text(tokenizer, prompting.chat(prompt, inventory)) for prompt in prompts]
        return [str(asked(address, "completion", prompt=chat, **greedy, **rule)["content"]) for chat in chats]

    return answer


def server_tokens(address: str, text: str) -> Sequence[int]:
    """How a llama-server cuts a text into tokens."""
    ids: list[int] = asked(address, "tokenize", content=text, parse_special=True)["tokens"]
    return ids
