"""The engine: its tokens are those of naive decoding, whatever else is decoded beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gossamer as gs
from gossamer.chat.engine import CHUNK, STEP, Engine, Reply, Request, Sampling
from gossamer.chat.lighter import Weights, lighten
from gossamer.chat.sampling import choose
from gossamer.models.gpt import GPT, GPTConfig

CONTEXT, VOCAB = 160, 70


@pytest.fixture(scope="module")
def model() -> GPT:
    gs.manual_seed(3)
    made = GPT(GPTConfig(vocab_size=VOCAB, n_layer=2, n_head=4, n_kv_head=2, n_embd=32,
                         sequence_len=CONTEXT))
    with gs.no_grad():
        for parameter in made.parameters():  # also those that start at zero
            gs.nn.init.normal_(parameter, std=0.3)
    return made


def naive(model: GPT, ids: list[int], count: int) -> list[int]:
    """The likeliest token after a whole forward pass, again and again."""
    ids = list(ids)
    with gs.no_grad():
        for _ in range(count):
            ids.append(int(model(gs.tensor([ids]))[0, -1].argmax().item()))
    return ids[-count:]


def tokens(engine: Engine, request: Request) -> list[int]:
    return [token.id for token in engine.generate(request)]


def drain(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def prompt(seed: int, length: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, length)]


def test_ragged_batch_equals_naive(model: GPT) -> None:
    """More requests than rows, of many lengths, one longer than a piece."""
    engine = Engine(model, rows=3)
    prompts = [prompt(n, length) for n, length in enumerate([1, 40, 2, 33, CHUNK + 9, 5, 31])]
    replies = [engine.submit(Request(p, max_tokens=9)) for p in prompts]
    drain(engine)
    for p, reply in zip(prompts, replies, strict=True):
        assert [t.id for t in reply.tokens] == naive(model, p, 9)
        assert reply.finish == "length"


def test_requests_join_while_others_run(model: GPT) -> None:
    engine = Engine(model, rows=2)
    first = engine.submit(Request(prompt(1, 20), max_tokens=30))
    for _ in range(7):
        engine.step()
    second = engine.submit(Request(prompt(2, 3), max_tokens=5))
    drain(engine)
    assert [t.id for t in first.tokens] == naive(model, prompt(1, 20), 30)
    assert [t.id for t in second.tokens] == naive(model, prompt(2, 3), 5)


def test_a_conversation_reads_only_what_is_new(model: GPT) -> None:
    engine = Engine(model, rows=2)
    ids = prompt(4, 50)
    said = tokens(engine, Request(ids, max_tokens=6))
    fed: list[int] = []
    run = engine._run

    def count(pieces, *rest):
        fed.append(len(pieces[0]) if rest[0] is not engine.slots else 1)
        return run(pieces, *rest)

    engine._run = count  # type: ignore[method-assign]
    longer = [*ids, *said, *prompt(5, 4)]
    assert tokens(engine, Request(longer, max_tokens=3)) == naive(model, longer, 3)
    assert fed == [32, 1, 1]  # the last reply token and four new ones, padded to 32; then singly
    branch = [*ids[:30], *prompt(6, 4)]  # an edited message: what follows is forgotten
    assert tokens(engine, Request(branch, max_tokens=3)) == naive(model, branch, 3)


def drained(engine: Engine, prompts: list[list[int]], count: int) -> list[Reply]:
    replies = [engine.submit(Request(p, max_tokens=count)) for p in prompts]
    drain(engine)
    return replies


@pytest.mark.parametrize("weights", [Weights.int8, Weights.int4])
def test_packed_weights_decode_as_their_naive_twin(model: GPT, weights: Weights) -> None:
    light = GPT(model.config)
    light.load_state_dict(model.state_dict())
    assert lighten(light, weights) is light
    size = sum(t.nbytes for t in light.state_dict().values())
    assert size < sum(t.nbytes for t in model.state_dict().values()) * 0.6
    shared = prompt(8, STEP + 4)
    prompts = [prompt(1, 40), [*shared, 5], [*shared, 6, 7], [3], prompt(2, CHUNK + 3)]
    for p, reply in zip(prompts, drained(Engine(light, rows=3), prompts, 8), strict=True):
        assert [t.id for t in reply.tokens] == naive(light, p, 8)


def test_a_beginning_in_another_row_is_copied(model: GPT) -> None:
    """One row reads what all prompts begin with, while the others wait for it."""
    engine, shared = Engine(model, rows=4), prompt(8, 2 * STEP + 6)
    prompts = [[*shared, *prompt(20 + n, n + 1)] for n in range(6)]
    replies = drained(engine, prompts, 5)
    assert engine.copied == 3 * len(shared)  # the other two came into rows that had read it
    for p, reply in zip(prompts, replies, strict=True):
        cold = list(Engine(model, rows=4).generate(Request(p, max_tokens=5)))
        assert [t.id for t in reply.tokens] == [t.id for t in cold] == naive(model, p, 5)
        assert np.allclose([t.logprob for t in reply.tokens], [t.logprob for t in cold], atol=1e-5)


@pytest.mark.parametrize("length", [4, STEP + 9])
def test_copies_of_one_prompt(model: GPT, length: int) -> None:
    """Also of a short one: its last token alone is decoded beside the others."""
    engine, same = Engine(model, rows=4), prompt(8, length)
    for reply in drained(engine, [same] * 4, 5):
        assert [t.id for t in reply.tokens] == naive(model, same, 5)
    assert engine.copied == 3 * (len(same) - 1)


@pytest.fixture(scope="module")
def short_sighted() -> GPT:
    """Windows of 64 in two of four layers."""
    gs.manual_seed(4)
    made = GPT(GPTConfig(vocab_size=VOCAB, n_layer=4, n_head=4, n_kv_head=2, n_embd=32,
                         sequence_len=4 * 64, windows="SL"))
    with gs.no_grad():
        for parameter in made.parameters():
            gs.nn.init.normal_(parameter, std=0.3)
    return made


def test_windows_keep_only_what_they_see(short_sighted: GPT,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token what whole rows give; also where a beginning is copied."""
    engine, cache = Engine(short_sighted, rows=3, kept=1), GPT.cache
    monkeypatch.setattr(GPT, "cache", lambda model, rows, _: cache(model, rows))
    whole = Engine(short_sighted, rows=3, kept=1)
    assert engine.cache.rooms == [64 + CHUNK, 256, 64 + CHUNK, 256]
    assert engine.cache.nbytes * 8 == whole.cache.nbytes * 7
    shared = prompt(8, 40)
    prompts = [prompt(1, 230), [*shared, *prompt(2, 170)], [*shared, 5], prompt(3, 10)]
    counts, found = [20, 40, 200, 190], []
    for one in (engine, whole):
        replies = [one.submit(Request(p, n, Sampling(0.8, seed=n)))
                   for p, n in zip(prompts, counts, strict=True)]
        drain(one)
        found.append([[t.id for t in reply.tokens] for reply in replies])
        assert one.copied == len(shared)
    assert found[0] == found[1] and [len(said) for said in found[0]] == counts
    assert len(set(found[0][2])) > 20


def test_what_a_window_has_left_behind_is_read_again(short_sighted: GPT) -> None:
    """A row that slid knows a prompt only if it has the whole window before its next position."""
    engine, ids = Engine(short_sighted, rows=1, kept=1), prompt(1, 200)
    said = tokens(engine, Request(ids, max_tokens=30))
    assert engine.slots[0].base
    for longer in ([*ids, *said, 3], [*ids[:180], 5], [*ids[:20], 6], [*ids[:100], 7]):
        assert tokens(engine, Request(longer, max_tokens=9)) == naive(short_sighted, longer, 9)


def test_who_waits_for_a_beginning_goes_on_without_it(model: GPT) -> None:
    """The one that reads it is cancelled, and another request takes its row at once."""
    engine, shared = Engine(model, rows=2), prompt(8, CHUNK + 6)
    first, second = (engine.submit(Request([*shared, n], max_tokens=4)) for n in (1, 2))
    engine.step()
    first.cancel()
    third = engine.submit(Request(prompt(9, 50), max_tokens=4))
    drain(engine)
    assert engine.copied == CHUNK
    assert [t.id for t in second.tokens] == naive(model, [*shared, 2], 4)
    assert [t.id for t in third.tokens] == naive(model, prompt(9, 50), 4)


def test_what_leaves_its_slot_is_kept_on_the_shelf(model: GPT) -> None:
    """The least recently used leaves the shelf first; short ones are not worth a place."""
    engine = Engine(model, rows=1, kept=2)
    texts = [prompt(30 + n, STEP + 8) for n in range(4)]
    for text in (*texts, [1, 2, 3], [4, 5]):
        tokens(engine, Request(text, max_tokens=1))
    assert sorted(row.ids[:len(texts[0])] for row in engine.shelf) == sorted(texts[2:])
    again = [*texts[2], *prompt(7, 3)]
    assert tokens(engine, Request(again, max_tokens=4)) == naive(model, again, 4)
    assert engine.copied == len(texts[2]) and not engine.slots[0].base
    before = engine.copied
    assert tokens(engine, Request(texts[0], max_tokens=4)) == naive(model, texts[0], 4)
    assert engine.copied == before  # forgotten long ago
    kept = [row.ids for row in engine.shelf]
    assert any(ids[:len(again)] == again for ids in kept)  # in place of its own beginning
    assert any(ids[:len(texts[3])] == texts[3] for ids in kept)


def test_the_end_of_the_context_ends_the_reply(model: GPT) -> None:
    engine = Engine(model, rows=2)
    reply = engine.submit(Request(prompt(1, CONTEXT - 4)))
    drain(engine)
    assert (len(reply.tokens), reply.finish) == (4, "length")
    assert [t.id for t in reply.tokens] == naive(model, prompt(1, CONTEXT - 4), 4)
    # The row is full; an idle row is written to in each round and must not spoil what it holds.
    other = prompt(7, 6)
    assert tokens(engine, Request(other, max_tokens=3)) == naive(model, other, 3)
    again = prompt(1, CONTEXT - 4)
    assert tokens(engine, Request(again, max_tokens=2)) == naive(model, again, 2)


def test_stop_tokens_are_not_part_of_the_reply(model: GPT) -> None:
    engine = Engine(model, rows=1)
    free = tokens(engine, Request([1, 2], max_tokens=10))
    reply = engine.submit(Request([1, 2], max_tokens=10, stop=(free[4],)))
    drain(engine)
    assert [t.id for t in reply.tokens] == free[:free.index(free[4])]
    assert reply.finish == "stop"


def test_forced_tokens_follow_what_asked_for_them(model: GPT) -> None:
    engine = Engine(model, rows=1)
    first = naive(model, [1, 2], 1)[0]
    request = Request([1, 2], max_tokens=6, follow=lambda i: [9, 8, 7] if i == first else [])
    reply = engine.submit(request)
    engine.step()
    assert [(t.id, t.forced) for t in reply.tokens] == [
        (first, False), (9, True), (8, True), (7, True)]
    drain(engine)
    assert [t.id for t in reply.tokens[4:]] == naive(model, [1, 2, first, 9, 8, 7], 2)
    short = engine.submit(Request([1, 2], max_tokens=3, follow=request.follow))
    drain(engine)
    assert [t.id for t in short.tokens] == [first, 9, 8] and short.finish == "length"


def test_cancelling_frees_the_slot(model: GPT) -> None:
    engine = Engine(model, rows=1)
    long, next_one = engine.submit(Request([1])), engine.submit(Request([2], max_tokens=2))
    for _ in range(3):
        engine.step()
    long.cancel()
    drain(engine)
    assert long.finish == "cancelled" and len(long.tokens) == 3
    assert [t.id for t in next_one.tokens] == naive(model, [2], 2)


def test_who_has_gone_does_not_wait(model: GPT) -> None:
    """Cancelled while every slot is taken: told at the next round, though no slot is free."""
    engine = Engine(model, rows=1)
    long, gone, left = (engine.submit(Request([n], max_tokens=9)) for n in (1, 2, 3))
    engine.step()
    gone.cancel()
    engine.step()
    assert gone.finish == "cancelled" and [*engine.waiting] == [left] and long.finish is None
    drain(engine)
    assert [t.id for t in left.tokens] == naive(model, [3], 9) and not gone.tokens


@pytest.mark.parametrize("program", ["_slide", "_copy"])
def test_ctrl_c_while_memory_is_rewritten(short_sighted: GPT, program: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is written down that it was: whatever a row is said to know, it does."""
    engine, first, second = Engine(short_sighted, rows=1, kept=2), prompt(1, 200), prompt(2, 200)
    said = tokens(engine, Request(first, max_tokens=30))
    assert engine.slots[0].base
    rewrite = getattr(engine, program)

    def interrupted(*rows: gs.Tensor) -> None:
        rewrite(*rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, program, interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokens(engine, Request(second, max_tokens=30))
    for longer in ([*second[:40], 3], [*second[:150], 3], [*first, *said, 3],
                   [*first, *said[:7], 4], [*second, 5]):
        assert tokens(engine, Request(longer, max_tokens=5)) == naive(short_sighted, longer, 5)


@pytest.mark.parametrize("when", ["kept", "taken"])
def test_ctrl_c_while_the_shelf_is_used(model: GPT, when: str,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two copies, what is left to the shelf and what comes from it, one is interrupted; the
    place had another conversation before."""
    engine, texts = Engine(model, rows=1, kept=1), [prompt(n, STEP + 8) for n in range(3)]
    for text in texts[:2]:
        tokens(engine, Request(text, max_tokens=1))
    copy, calls = engine._copy, iter([KeyboardInterrupt])

    def interrupted(*rows: gs.Tensor) -> None:
        copy(*rows)
        for error in calls:
            raise error

    asked = {"kept": texts[2], "taken": [*texts[0], 7]}[when]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokens(engine, Request(asked, max_tokens=1))
    for text in (*texts, asked):
        longer = [*text, 9]
        assert tokens(engine, Request(longer, max_tokens=4)) == naive(model, longer, 4)


def test_a_seed_decides_and_neighbours_do_not(model: GPT) -> None:
    request = Request([1, 2, 3], max_tokens=25, sampling=Sampling(1.0, top_k=20, seed=5))
    alone = tokens(Engine(model, rows=3), request)
    engine = Engine(model, rows=3)
    for n in range(4):
        engine.submit(Request(prompt(n, 20 + n), max_tokens=12, sampling=Sampling(0.8, seed=n)))
    assert tokens(engine, request) == alone
    other = Request([1, 2, 3], max_tokens=25, sampling=Sampling(1.0, top_k=20, seed=6))
    assert tokens(engine, other) != alone


def test_probabilities_are_those_of_the_model(model: GPT) -> None:
    engine = Engine(model, rows=1)
    ids = [1, 2, 3]
    found = list(engine.generate(Request(ids, 3, Sampling(2.0, seed=1), alternatives=True)))
    for token in found:
        with gs.no_grad():
            exact = gs.log_softmax(model(gs.tensor([ids]))[0, -1], dim=-1)
        assert token.logprob == pytest.approx(exact[token.id].item(), abs=1e-4)
        best = exact.topk(20)
        assert [i for i, _ in token.alternatives] == best.indices.tolist()
        assert np.allclose([p for _, p in token.alternatives], best.values.tolist(), atol=1e-4)
        ids = [*ids, token.id]


def test_few_programs(model: GPT) -> None:
    """A new prompt length or position compiles nothing."""
    engine = Engine(model, rows=2)
    engine.warm_up()
    made = engine._advance.traced
    # Greedy, drawn, ranked; of each one token of all rows, a short and a long piece of one row.
    assert made == 9
    for length in [*range(1, 40, 3), 100, CHUNK, CHUNK + 1, CONTEXT - 3, CONTEXT - 1]:
        hot = Sampling(float(length % 2), top_k=length % 3)
        tokens(engine, Request(prompt(length, length), max_tokens=2, sampling=hot))
    assert engine._advance.traced == made and engine._copy.traced == 1


@pytest.mark.parametrize("ids", [[], [1] * CONTEXT, [VOCAB], [-1]])
def test_impossible_prompts(model: GPT, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="the prompt has"):
        Engine(model, rows=1).submit(Request(ids))


@pytest.mark.parametrize("knobs", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"min_p": 2},
                                   {"temperature": float("nan")}])
def test_impossible_sampling(knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Sampling"):
        Sampling(**knobs)


# The choice of a token ----------------------------------------------------------------------------

def reference(logits: np.ndarray, t: float, k: int, top_p: float, min_p: float,
              u: float) -> set[int]:
    """Tokens that may be chosen: more than one where rounding decides."""
    if t == 0:
        return {int(logits.argmax())}
    scaled = logits.astype(np.float64) / t
    order = np.argsort(-scaled, kind="stable")
    p = np.exp(scaled[order] - scaled.max())
    p /= p.sum()
    if k:
        p[k:] = 0
        p /= p.sum()
    before = np.cumsum(p) - p
    found = set()
    for near in (-1e-6, 0, 1e-6):
        left = np.zeros_like(p)
        left[order] = np.where((before < top_p + near) & (p >= (min_p + near) * p[0]), p, 0)
        total = np.cumsum(left)
        for e in (-1e-5, 0, 1e-5):
            n = int(np.searchsorted(total, (u + e) * total[-1], "right"))
            found.add(min(n, int(np.flatnonzero(left)[-1])))
    return found


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1.0, 3.0]), st.integers(0, 12),
       st.sampled_from([0.1, 0.5, 0.93, 1.0]), st.sampled_from([0.0, 0.07, 0.4]),
       st.floats(0, 1, exclude_max=True))
@settings(max_examples=150, deadline=None)
def test_choice_equals_the_definition(seed: int, t: float, k: int, top_p: float, min_p: float,
                                      u: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(1, 12)).astype(np.float32) * 2
    knobs = np.array([[t, k, top_p, min_p, u]], np.float32)
    scores = gs.tensor(logits)
    right = reference(logits[0], t, k, top_p, min_p, float(knobs[0, 4]))
    ranked = scores.sort(dim=-1, descending=True).values
    assert choose(scores, gs.tensor(knobs), ranked).item() in right
    if (k, top_p, min_p) == (0, 1.0, 0.0):
        assert choose(scores, gs.tensor(knobs)).item() in right


def test_frequencies_are_probabilities() -> None:
    logits = gs.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(4000, 4)
    u = (gs.arange(4000) + 0.5) / 4000
    knobs = gs.stack([gs.ones(4000), gs.zeros(4000), gs.ones(4000), gs.zeros(4000), u], dim=1)
    counts = np.bincount(choose(logits, knobs).numpy(), minlength=4)
    assert np.allclose(counts / 4000, gs.softmax(logits[0], dim=-1).numpy(), atol=1e-3)
