"""Batched decoding against decoding by one and against transformers, and the grammar against `encode` and `parse`."""

import contextlib
import random
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("llguidance")

import torch
from tiny_models import tiny, tiny_tokenizer

import jaxsim
import prompting
from grpo.model import attention, grammar, models
from grpo.model import decode as d
from grpo.model.decode import Decoder, Sampling, decode

PLAIN = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> models.Loaded:
    return models.load(str(tiny(tmp_path_factory.mktemp("decode") / "tiny")), dtype="float32", device="cpu")


@pytest.fixture
def decoder(loaded) -> Decoder:
    return Decoder(loaded.model, loaded.tokenizer)


@pytest.fixture(scope="module")
def inventory() -> prompting.Inventory:
    return prompting.inventory(jaxsim.load_scenario("supply_chain_token_drift"))


def with_restore(inventory: prompting.Inventory) -> prompting.Inventory:
    return prompting.inventory(jaxsim.load_scenario("supply_chain_token_drift"), inventory.dims._replace(restore=True))


def prompts(many: int = 8, shared: int = 30, seed: int = 0) -> list[list[int]]:
    """Random tokens of many lengths after a shared beginning."""
    draw = random.Random(seed)
    start = [draw.randrange(3, 300) for _ in range(shared)]
    return [start + [draw.randrange(3, 300) for _ in range(draw.randrange(1, 20))] for _ in range(many)]


def singly(decoder: Decoder, texts: list[list[int]], sampling: Sampling, **options: Any) -> list[d.Completion]:
    """Each by itself, with no cache kept."""
    found = []
    for i, prompt in enumerate(texts):
        decoder.forget()
        found += decode(decoder, [prompt], sampling, **{k: [v[i]] for k, v in options.items()})
    return found


def ended_by(decoder: Decoder, texts: list[list[int]]) -> Decoder:
    """A decoder for which the third token of the first answer is an end, so that rows leave at different times."""
    token = decode(decoder, texts, PLAIN)[0].tokens[2]
    other = Decoder(decoder.model, decoder.tokenizer)
    other.ends |= {token}
    return other


def generated(decoder: Decoder, prompt: list[int], sampling: Sampling) -> list[int]:
    """What transformers answers, without the end token."""
    ids = torch.tensor([prompt])
    found = decoder.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(decoder.ends),
    )[0, len(prompt) :].tolist()
    return found[:-1] if found and found[-1] in decoder.ends else found


# --- without a grammar ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [0, 1, 30, 100])
def test_a_batch_says_what_each_row_says_alone(decoder, shared):
    texts = prompts(shared=shared)
    decoder = ended_by(decoder, texts)
    together = decode(decoder, texts, PLAIN)
    assert together == singly(decoder, texts, PLAIN)
    assert len({tuple(answer.tokens) for answer in together}) > 1
    assert {answer.ended for answer in together} == {True, False}
    for answer in together:
        assert answer.steps == len(answer.tokens) + answer.ended
        assert answer.ended or len(answer.tokens) == PLAIN.max_new_tokens
        assert not decoder.ends & set(answer.tokens)
        assert answer.text == decoder.tokenizer.decode(answer.tokens, skip_special_tokens=True)


def test_as_transformers_generates(decoder):
    texts = prompts()
    decoder = ended_by(decoder, texts)
    assert [answer.tokens for answer in decode(decoder, texts, PLAIN)] == [
        generated(decoder, prompt, PLAIN) for prompt in texts
    ]


@pytest.mark.parametrize(("at_once", "more"), [(1, 1), (40, 3), (3200, 64)])
def test_however_a_pass_is_cut_and_the_cache_grows(decoder, monkeypatch, at_once, more):
    texts = prompts(many=5)
    wanted = singly(decoder, texts, PLAIN)
    decoder.forget()
    monkeypatch.setattr(d, "AT_ONCE", at_once)
    monkeypatch.setattr(attention, "MORE", more)
    wrong = [[*answer.tokens[:3], 299, *answer.tokens[4:]] for answer in wanted]  # drafts that are dropped need room
    assert decode(decoder, texts, PLAIN, likely=wrong) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_heads_attend_as_those_of_transformers(loaded, dtype):
    model, texts = loaded.model.to(dtype), prompts(many=3)
    wide = max(map(len, texts))
    ids = torch.tensor([[0] * (wide - len(t)) + t for t in texts])
    mask = torch.tensor([[0] * (wide - len(t)) + [1] * len(t) for t in texts])
    found = []
    with torch.inference_mode():
        for context in (contextlib.nullcontext(), attention.packed(model)):
            with context:
                found.append(model(input_ids=ids, attention_mask=mask).logits[mask.bool()])
    model.to(torch.float32)
    assert model.config._attn_implementation == "sdpa"
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_kept_prefix_changes_nothing(decoder):
    first, second = prompts(seed=1), prompts(seed=1, many=12)[4:]
    fresh = decode(decoder, second, PLAIN)
    decoder.forget()
    decode(decoder, first, PLAIN)
    kept = decoder.encoded
    assert len(decoder.prefix) >= 30
    assert decode(decoder, second, PLAIN) == fresh
    assert decoder.encoded is kept  # was used again
    other = prompts(seed=2, shared=80)
    found = decode(decoder, other, PLAIN)
    assert decoder.encoded is not kept and len(decoder.prefix) >= 80
    assert found == singly(decoder, other, PLAIN)
    # Of the same beginning, but another way on inside the kept prefix.
    turned = [[*prompt[:70], 5, 6, 7, *prompt[73:]] for prompt in other]
    kept = decoder.encoded
    found = decode(decoder, turned, PLAIN)
    assert decoder.encoded is kept
    assert found == singly(decoder, turned, PLAIN)


def test_with_a_pinned_prompt_the_past_does_not_matter(decoder):
    many, others = prompts(seed=3), prompts(seed=3, shared=80)
    wanted = singly(decoder, many, PLAIN)
    decoder.pin(many[0])
    kept = decoder.encoded
    assert decode(decoder, many, PLAIN) == wanted
    assert decode(decoder, others, PLAIN) == singly(Decoder(decoder.model, decoder.tokenizer), others, PLAIN)
    decoder.pin(many[0])
    assert decoder.encoded is kept and decoder.prefix == many[0]
    decoder.pin(others[0])
    assert decoder.prefix == others[0]
    decoder.forget()
    decode(decoder, many, PLAIN)
    assert decoder.prefix == many[0][:30]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_likely_answers_change_nothing_but_the_passes(decoder, temperature):
    texts, seeds = prompts(seed=4), [(i,) for i in range(8)]
    sampling = PLAIN._replace(temperature=temperature)
    decoder = ended_by(decoder, texts)
    wanted = decode(decoder, texts, sampling, None, seeds)
    passes = []
    hook = decoder.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        decode(decoder, texts, sampling, None, seeds)
        plain = len(passes)
        # What is said, said only at first, said but for the middle, and never.
        said = [answer.tokens for answer in wanted]
        turned = [[*t[:3], t[3] + 1, *t[4:]] for t in said if len(t) > 3]
        for likely, fewer in ((said, True), (turned, True), ([t[:3] for t in said], True), ([[1, 1, 1]], False)):
            passes.clear()
            assert decode(decoder, texts, sampling, None, seeds, likely) == wanted
            assert len(passes) < plain if fewer else len(passes) == plain
        passes.clear()
        assert decode(decoder, texts[:1], sampling, None, seeds[:1], said[:1]) == wanted[:1]
        assert len(passes) <= 2  # the beginning, and all of the answer at once
    finally:
        hook.remove()


def test_forgetting_when_weights_change(decoder):
    texts = prompts()
    before = decode(decoder, texts, PLAIN)
    head = decoder.model.lm_head.weight
    saved = head.detach().clone()
    try:
        with torch.no_grad():
            head.copy_(head.flip(0))
        decoder.forget()
        assert not decoder.prefix and not decoder.encoded
        assert decode(decoder, texts, PLAIN) != before
    finally:
        with torch.no_grad():
            head.copy_(saved)


def test_nothing_to_do(decoder):
    assert decode(decoder, []) == []
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decode(decoder, [[5], []])
    assert decode(decoder, [[5], [5, 6]], Sampling(max_new_tokens=0)) == [d.Completion("", [], 0, False)] * 2


def test_equal_prompts_and_one_token_prompts(decoder):
    texts = [[7], [7, 8, 9], [7], [7, 8, 9]]
    found = decode(decoder, texts, PLAIN)
    assert found[:2] == found[2:] == singly(decoder, texts[:2], PLAIN)


def test_cut_off(decoder):
    texts = prompts()
    whole = decode(decoder, texts, PLAIN)
    for cut in (1, 5):
        for long, short in zip(whole, decode(decoder, texts, Sampling(max_new_tokens=cut)), strict=True):
            if len(long.tokens) < cut:
                assert short == long
            else:
                assert (short.tokens, short.ended, short.steps) == (long.tokens[:cut], False, cut)


def test_ties_are_settled_by_the_row_alone(decoder, monkeypatch):
    texts = prompts()
    wanted = decode(decoder, texts, PLAIN)
    monkeypatch.setitem(d.TIE, torch.float32, 1e9)  # every choice
    feed = d._feed

    def noisy(*arguments):
        logits, *rest = feed(*arguments)
        return logits.roll(1, -1), *rest

    monkeypatch.setattr(d, "_feed", noisy)
    assert [a.tokens for a in decode(decoder, texts, PLAIN)] == [a.tokens for a in wanted]
    assert decode(decoder, texts, PLAIN._replace(settle_ties=False)) != wanted


# --- sampling -------------------------------------------------------------------------------------------------------


def test_samples_depend_on_a_rows_seed_alone(decoder, inventory):
    texts = prompts()
    sampling = Sampling(temperature=1.0, max_new_tokens=10)
    seeds = [(3, i) for i in range(len(texts))]
    found = decode(decoder, texts, sampling, seeds=seeds)
    assert found == singly(decoder, texts, sampling, seeds=seeds)
    order = [5, 2, 7, 0]
    assert decode(decoder, [texts[i] for i in order], sampling, seeds=[seeds[i] for i in order]) == [
        found[i] for i in order
    ]
    assert decode(decoder, texts, sampling, seeds=[(4, i) for i in range(len(texts))]) != found
    same = decode(decoder, [texts[0]] * 6, sampling, seeds=seeds[:6])
    assert len({tuple(answer.tokens) for answer in same}) > 1
    with pytest.raises(ValueError, match="no seeds were given"):
        decode(decoder, texts, sampling)


def test_samples_follow_the_probabilities():
    logits, allowed = torch.tensor([1.0, 3.0, 2.0, 0.0, 2.5]), torch.tensor([True, False, True, True])
    sampling, rng = Sampling(temperature=0.7), np.random.default_rng(0)
    many = 4000
    share = np.bincount([d._pick(logits, allowed, rng, sampling) for _ in range(many)], minlength=5) / many
    wanted = np.exp(np.array([1.0, -np.inf, 2.0, 0.0, -np.inf]) / 0.7)  # what is beyond the tokenizer is not allowed
    wanted /= wanted.sum()
    assert np.all(np.abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / many) + 1e-12)


def test_a_draw_never_falls_on_what_is_not_allowed():
    class Last(np.random.Generator):
        def random(self) -> float:
            return 1.0

    rng = Last(np.random.PCG64(0))
    allowed = torch.tensor([True, True, False])
    assert d._pick(torch.zeros(3), allowed, rng, Sampling(temperature=1.0)) == 1


# --- grammar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_answer_is_legal(decoder, inventory, temperature):
    texts = prompts(16)
    sampling = Sampling(temperature=temperature, max_new_tokens=90)
    options = {"matchers": [grammar.matcher(decoder.tokenizer, inventory) for _ in texts]}
    if temperature:
        options["seeds"] = [(1, i) for i in range(len(texts))]
    found = decode(decoder, texts, sampling, **options)
    options["matchers"] = [grammar.matcher(decoder.tokenizer, inventory) for _ in texts]
    assert found == singly(decoder, texts, sampling, **options)
    for answer in found:
        parsed = prompting.parse(answer.text, inventory)
        assert parsed.action in inventory.actions.values()
        assert answer.text == prompting.encode(parsed.action, inventory)
        assert answer.ended and 0 < answer.steps < len(answer.tokens)  # the others were forced
    assert len({answer.text for answer in found}) > 1


def test_a_grammar_leaves_the_choice_to_the_model(decoder, inventory):
    """Greedy answers are those of a plain loop that masks logits, without a cache and token by token."""
    for prompt in prompts(4):
        tokens: list[int] = []
        row = grammar.matcher(decoder.tokenizer, inventory)
        while not row.is_stopped():
            with torch.no_grad():
                logits = decoder.model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1]
            mask = np.frombuffer(row.compute_logit_bias(), np.uint8) > 0
            tokens.append(max(np.flatnonzero(mask).tolist(), key=lambda i, x=logits: float(x[i])))
            assert row.consume_token(tokens[-1])
        answer = decode(
            decoder, [prompt], Sampling(max_new_tokens=90), [grammar.matcher(decoder.tokenizer, inventory)]
        )[0]
        assert answer.text == decoder.tokenizer.decode(tokens)


def test_a_grammar_that_is_cut_off(decoder, inventory):
    texts = prompts()
    fresh = grammar.matcher(decoder.tokenizer, inventory)
    forced = len(fresh.compute_ff_tokens())
    assert forced > 2
    for cut in range(forced + 4):
        found = decode(decoder, texts, Sampling(max_new_tokens=cut), [fresh.deep_copy() for _ in texts])
        for answer in found:
            assert len(answer.tokens) == cut and not answer.ended
            assert prompting.parse(answer.text, inventory).reason
            assert answer.steps <= max(0, cut - forced)


def test_only_one_answer_is_legal(decoder, inventory):
    """Nothing is left to choose, and the model is not asked."""
    alone = inventory._replace(actions={("MONITOR", None): 0})
    rows = [grammar.matcher(decoder.tokenizer, x) for x in (alone, inventory)]
    found = decode(decoder, [[5, 6], [5, 7]], Sampling(max_new_tokens=90), rows)
    assert found[0] == d.Completion('{"action": "MONITOR"}', found[0].tokens, 0, True)
    assert found[1].ended and found[1].steps > 0
    assert found[1].text != found[0].text


def test_a_broken_matcher_is_not_kept_quiet(decoder, inventory):
    row = grammar.matcher(decoder.tokenizer, inventory)
    row.consume_token(decoder.tokenizer.eos_token_id)
    with pytest.raises(ValueError, match=r"grammar cannot go on: .*doesn't satisfy"):
        decode(decoder, [[5, 6]], PLAIN, [row])


def language(start: Any, tokenizer: Any) -> set[str]:
    """Every text that a grammar accepts, by all ways through its masks of texts that are not known yet."""
    found, seen, stack = set(), {""}, [(start, "")]
    end = tokenizer.eos_token_id
    texts = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
    while stack:
        row, text = stack.pop()
        if row.is_accepting():
            found.add(text)
        if row.is_stopped():
            continue
        for token in np.flatnonzero(np.frombuffer(row.compute_logit_bias(), np.uint8)).tolist():
            longer = text + texts[token]
            if token != end and longer not in seen:
                seen.add(longer)
                after = row.deep_copy()
                assert after.consume_token(token)
                stack.append((after, longer))
    return found


@pytest.mark.parametrize("restore", [False, True])
def test_the_language_is_what_encode_writes(inventory, restore):
    inventory = with_restore(inventory) if restore else inventory
    tokenizer = tiny_tokenizer()
    legal = {prompting.encode(action, inventory) for action in inventory.actions.values()}
    assert language(grammar.matcher(tokenizer, inventory), tokenizer) == legal
    assert sum("RESTORE" in text for text in legal) == restore * inventory.dims.entities


@pytest.mark.parametrize("restore", [False, True])
def test_the_schema_has_the_same_language(inventory, restore):
    """Who constrains by `prompting.schema` elsewhere gets the same answers."""
    import json

    from llguidance import LLMatcher

    inventory = with_restore(inventory) if restore else inventory
    tokenizer = tiny_tokenizer()
    spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    schema = LLMatcher.grammar_from_json_schema(json.dumps(prompting.schema(inventory)), defaults=spaces)
    legal = {prompting.encode(action, inventory) for action in inventory.actions.values()}
    assert language(LLMatcher(grammar._tokens(tokenizer), schema), tokenizer) == legal


def test_compiled_once(inventory):
    tokenizer = tiny_tokenizer()
    grammar._compiled.cache_clear()
    one, other = (grammar.matcher(tokenizer, inventory) for _ in range(2))
    assert grammar._compiled.cache_info().misses == 1
    one.consume_tokens(one.compute_ff_tokens())
    assert other.compute_ff_tokens()  # rows do not share their place


def test_without_llguidance(inventory, monkeypatch):
    for name in ("llguidance", "llguidance.hf"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(models.ModelError, match=r"llguidance is missing.*pip install 'jaxsim-soc\[train\]'"):
        grammar.matcher(tiny_tokenizer(), inventory)
    with pytest.raises(models.ModelError, match=r"llguidance is missing"):
        grammar.matcher(tiny_tokenizer(), inventory)


def test_a_slow_tokenizer(inventory):
    with pytest.raises(models.ModelError, match="cannot work with this tokenizer"):
        grammar.matcher(object(), inventory)
