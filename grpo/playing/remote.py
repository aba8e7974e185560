"""A model behind an OpenAI-compatible server as the analyst: llama.cpp, vLLM, Ollama, or a provider.

`--model openai:NAME --base-url http://127.0.0.1:8080/v1`. The key, if the server wants one, is in OPENAI_API_KEY and
is written nowhere. Prompts of a tick are asked side by side, at most `--batch` of them; what fails in passing (429,
5xx, a time-out, no connection) is asked again by the client library, with pauses that grow.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import environ
from typing import Any, NoReturn
from urllib.parse import urlsplit

import prompting
from grpo.playing.choices import CONSTRAINED, EXACT, FREE
from grpo.playing.speech import Respond, Speaker
from jaxsim_soc import cli
from prompting import Inventory

Message = dict[str, str]
PREFIX = "openai:"
KEY = "OPENAI_API_KEY"
NO_SCHEMA = (400, 415, 422, 501)  # answers to a JSON schema of servers that know none
# Asked before anything is played: whether server, key and model are there, and whether schemas are known.
PROBE = {
    "type": "object",
    "properties": {"action": {"enum": ["MONITOR"]}},
    "required": ["action"],
    "additionalProperties": False,
}


def is_remote(model: str) -> bool:
    """Whether --model names one that is behind a server."""
    return model.startswith(PREFIX)


def check_options(args: Any) -> None:
    """Fail for options that do not go together, before anything is played."""
    if not is_remote(args.model):
        for name in ("base_url", "max_requests"):
            if getattr(args, name) is not None:
                cli.fail(f"--{name.replace('_', '-')} is of a model behind a server; give --model {PREFIX}NAME as well")
        return
    cli.need("openai", f"--model {PREFIX}NAME", "openai")
    if args.model == PREFIX:
        cli.fail(f"--model {PREFIX} names no model; give the name that the server knows, such as {PREFIX}qwen2.5-1.5b")
    if args.base_url is None:
        cli.fail(f"--model {PREFIX}NAME needs --base-url, such as http://127.0.0.1:8080/v1")
    parts = urlsplit(args.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        cli.fail(f"--base-url {args.base_url!r:.200} is no address such as http://127.0.0.1:8080/v1")
    if args.decode == EXACT:
        cli.fail(
            f"--decode {EXACT} needs a model's probabilities, and a server gives words; take {CONSTRAINED} or {FREE}"
        )
    if args.adapter is not None:
        cli.fail(f"--adapter: a server plays with the adapter that it was started with; leave it out with {PREFIX}NAME")


class RemoteError(Exception):
    """What a server did wrong, in one line."""


class SchemaError(RemoteError):
    """It refuses a JSON schema."""


def load(args: Any, fail: Callable[[str], NoReturn] = cli.fail) -> Speaker:
    """The model. `fail` is called when the server does not play along; what it has said by then is kept."""
    asked = Counter[str]()
    lock = threading.Lock()
    ask = partial(_ask, client_of(args), args, asked, lock)

    def told(chats: Sequence[list[Message]], schema: Any) -> list[str]:
        pool = ThreadPoolExecutor(args.batch)
        try:
            return list(pool.map(lambda chat: ask(chat, schema), chats))
        except RemoteError as error:
            fail(str(error))
        finally:
            pool.shutdown(cancel_futures=True)

    schema_is_known = False
    if args.decode == CONSTRAINED:
        try:
            ask([{"role": "user", "content": 'Answer {"action": "MONITOR"}.'}], PROBE)
            schema_is_known = True
        except SchemaError:
            pass
        except RemoteError as error:
            fail(str(error))

    def respond_in(inventory: Inventory, opening: str) -> Respond:
        schema = prompting.schema(inventory) if schema_is_known else None

        def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> Sequence[str]:
            return told([prompting.chat(prompt, inventory) for prompt in prompts], schema)

        return respond

    def count(texts: Sequence[str]) -> int:
        """Tokens of what was said since the last count, as the server counts them."""
        with lock:
            return asked.pop("tokens", 0)

    answers = "by JSON schema" if schema_is_known else "free"
    if args.decode == CONSTRAINED and not schema_is_known:
        answers += ": the server knows no JSON schema"
    return Speaker(respond_in, count, {"model": args.model, "base_url": args.base_url, "answers": answers})


def client_of(args: Any) -> Any:
    """The client of a server."""
    from openai import OpenAI

    key = environ.get(KEY) or "none"  # the client wants one, a server at home does not
    return OpenAI(base_url=args.base_url, api_key=key, timeout=args.timeout, max_retries=args.retries)


def _ask(client: Any, args: Any, asked: Counter[str], lock: Any, chat: list[Message], schema: Any) -> str:
    """One answer. Raises RemoteError."""
    from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

    go_on = "what was said is kept: give the command again to go on"
    with lock:
        if args.max_requests is not None and asked["requests"] >= args.max_requests:
            raise RemoteError(f"--max-requests {args.max_requests} are used up; {go_on}")
        asked["requests"] += 1
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    where = f"--base-url {args.base_url}"
    try:
        answer = client.chat.completions.create(
            model=args.model.removeprefix(PREFIX), messages=chat, temperature=args.temperature,
            max_tokens=args.max_new_tokens, seed=args.seed % 2**31, **({"response_format": form} if schema else {}),
        )  # fmt: skip
        text = answer.choices[0].message.content or ""
        tokens = answer.usage.completion_tokens if answer.usage else 0
    except APIStatusError as error:
        words = " ".join(str(error.message).split())
        refused = schema is PROBE and error.status_code in NO_SCHEMA
        kind = SchemaError if refused else RemoteError
        raise kind(f"{where}: the server answers {error.status_code}: {words:.200}") from None
    except APIConnectionError as error:
        why = f"no answer within {args.timeout} s" if isinstance(error, APITimeoutError) else "no connection"
        raise RemoteError(f"{where}: {why} after {args.retries + 1} tries; {go_on}") from None
    except (APIError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise RemoteError(f"{where}: no answer of an OpenAI-compatible server ({error!r:.100})") from None
    with lock:
        asked["tokens"] += tokens
    return text
