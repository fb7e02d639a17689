"""Prompt-to-Prompt against attention written out: every operation by itself, windows, weights, and the local blend."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from controlled_diffusion.attention.alignment import DEGREE_SHARE, align
from controlled_diffusion.attention.call import QKSharing
from controlled_diffusion.attention.local_blend import Blending, LocalBlend, blurred, cut
from controlled_diffusion.attention.prompt import read
from controlled_diffusion.attention.prompt_edits import PromptEdits
from controlled_diffusion.attention.prompt_to_prompt import ActiveEdit, ActiveEdits, Edit, Rows, Settings, Window
from controlled_diffusion.attention.row_plan import RowSelection
from controlled_diffusion.attention.run_cache import RunCache
from torch.testing import assert_close

import explicit
from checks import draw, refused
from pieces import PIECES

LENGTH, HEADS, QUERIES = 24, 2, 5
ALWAYS = Settings(Window(), Window())


def maps(seed: int, length: int = LENGTH) -> torch.Tensor:
    return (3 * draw(1, HEADS, QUERIES, length, seed=seed)).softmax(-1)


SOURCE, TARGET = maps(1), maps(2)


def edit(source: str, target: str, operation: str = "auto", settings: Settings = ALWAYS, **more) -> Edit:
    return Edit.from_alignment(align(read(source, PIECES), read(target, PIECES), operation), settings, **more)


def applied(active: ActiveEdit, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The edited probabilities, which are what is gathered from a value of its own for each column."""
    each = torch.eye(active.length).expand(*source.shape[:2], -1, -1)
    return active.combined([(source if term.from_source else target) @ term.of(each) for term in active.terms])


def edited(source: str, target: str, operation: str = "auto", percent: float = 0.5, **more) -> torch.Tensor:
    return applied(edit(source, target, operation, **more).at_percent(percent), SOURCE, TARGET)


def sums_to_one(p):
    assert_close(p.sum(-1), torch.ones_like(p[..., 0]))


def test_equal_prompts_copy_the_sources_maps():
    moment = edit("a red circle", "a red circle").at_percent(0.5)
    assert moment.copies and torch.equal(applied(moment, SOURCE, TARGET), SOURCE)


def test_a_weight_acts_on_top_of_every_operation():
    for target in ("a red circle", "a blue big circle"):
        plain, one, three = (edited("a red circle", target, weights=w) for w in ({}, dict.fromkeys(range(LENGTH), 1.0), {2: 3.0}))
        assert torch.equal(one, plain)
        assert_close(three[..., 2], 3 * plain[..., 2])


def test_a_replaced_word_takes_over_the_map():
    p = edited("a red circle", "a cat circle")
    assert torch.equal(p, SOURCE)
    longer = edited("a red circle", "a completely circle")  # 1 token, then 3
    assert_close(longer[..., 2:5], SOURCE[..., 2:3].expand(-1, -1, -1, 3) / 3)
    assert_close(longer[..., 5:7], SOURCE[..., 3:5])
    sums_to_one(longer)


def test_an_inserted_word_keeps_its_own_attention():
    p = edited("a red circle", "a red big circle")
    own, total = TARGET[..., 3:4], 1 + TARGET[..., 3:4]
    assert_close(p[..., 3:4], own / total)
    assert_close(p[..., :3], SOURCE[..., :3] / total)
    assert_close(p[..., 4:6], SOURCE[..., 3:5] / total)
    sums_to_one(p)


def test_a_deleted_words_attention_goes_to_all_others():
    p = edited("a red big circle", "a red circle")
    kept = 1 - SOURCE[..., 3:4]
    assert_close(p[..., :3], SOURCE[..., :3] / kept)
    assert_close(p[..., 3:5], SOURCE[..., 4:6] / kept)
    sums_to_one(p)


def test_a_moved_word_brings_its_map():
    p = edited("a red circle and a blue square", "a blue square and a red circle")
    source, target = (read(t, PIECES) for t in ("a red circle and a blue square", "a blue square and a red circle"))
    for word in ("red", "circle", "and", "blue", "square"):
        i, j = source.columns(source.find(word)[0]), target.columns(target.find(word)[0])
        assert torch.equal(p[..., list(j)], SOURCE[..., list(i)]), word
    sums_to_one(p)


def test_a_degree_word_scales_its_neighbor_and_gets_a_share():
    p = edited("a red circle", "a very red circle")
    assert_close(p[..., 2], 1.5 * DEGREE_SHARE * SOURCE[..., 2])
    assert_close(p[..., 3], 1.5 * (1 - DEGREE_SHARE) * SOURCE[..., 2])
    assert_close(p[..., 4:6], SOURCE[..., 3:5])


@pytest.mark.parametrize("weight", [2.0, 0.5, 0.0, -1.0])
def test_a_weight_multiplies_its_column_and_nothing_else(weight):
    p = edited("a red circle", "a red circle", weights={2: weight})
    assert_close(p[..., 2], weight * SOURCE[..., 2])
    others = [c for c in range(LENGTH) if c != 2]
    assert torch.equal(p[..., others], SOURCE[..., others])


def test_a_refinement_leaves_substituted_words_to_themselves():
    p = edited("a red circle", "a blue circle", "refine")
    total = 1 - SOURCE[..., 2:3] + TARGET[..., 2:3]
    assert_close(p[..., 2:3], TARGET[..., 2:3] / total)
    assert_close(p[..., 3:], SOURCE[..., 3:] / total)
    sums_to_one(p)


def test_a_swap_shares_a_phrase_and_reweighting_keeps_own_maps():
    p = edited("a siamese cat", "a hat", "replace")  # 2 + 1 tokens, then 1
    assert_close(p[..., 2], SOURCE[..., 2:5].sum(-1))
    sums_to_one(p)
    assert_close(edited("a red circle", "a red circle", "reweight only"), TARGET)
    assert_close(edited("a red circle", "a red circle", "reweight only", weights={2: 2.0})[..., 2], 2 * TARGET[..., 2])


@pytest.mark.parametrize("alpha", [0.3, 0.7])
def test_alpha_blends_the_sources_maps_with_the_targets(alpha):
    p = edited("a red circle", "a cat circle", settings=Settings(Window(), Window(), alpha))
    assert_close(p, alpha * SOURCE + (1 - alpha) * TARGET)
    sums_to_one(p)


def test_outside_the_window_there_is_no_edit():
    half = edit("a cat", "a hat", settings=Settings(Window(0.2, 0.6), Window()))
    assert [p for p in (0.0, 0.19, 0.2, 0.59, 0.6, 1.0) if half.at_percent(p) is not None] == [0.2, 0.59]
    assert edit("a cat", "a hat", settings=Settings(Window(0, 0), Window())).at_percent(0.0) is None
    assert edit("a cat", "a hat", settings=Settings(Window(), Window(), 0.0)).at_percent(0.5) is None
    assert edit("a cat", "a hat").at_percent(1.0) is not None


def test_a_word_may_have_a_window_of_its_own():
    moments = edit("a red circle", "a cat circle", settings=Settings(Window(0.0, 0.8), Window()), windows={2: Window(0.0, 0.3)})
    early, late = (applied(moments.at_percent(p), SOURCE, TARGET) for p in (0.1, 0.5))
    assert torch.equal(early, SOURCE)
    mixed = SOURCE.clone()
    mixed[..., 2] = TARGET[..., 2]
    assert_close(late, mixed / mixed.sum(-1, keepdim=True))
    outlives = edit("a red circle", "a cat circle", settings=Settings(Window(0.0, 0.4), Window()), windows={2: Window(0.0, 0.9)})
    assert outlives.at_percent(0.6) is not None and outlives.at_percent(0.95) is None


def test_repeated_conditionings_give_the_same_output():
    """ComfyUI repeats a conditioning to the length of another: keys, values and maps are then there several times."""
    one, v = edit("a red circle", "a completely red big circle", weights={2: 2.0}), draw(1, LENGTH, HEADS * 4, seed=3)
    p = explicit.edited(one.repeated(2, 3), 0.5, SOURCE.repeat(1, 1, 1, 2) / 2, TARGET.repeat(1, 1, 1, 3) / 3)
    assert_close(explicit.attended(p, v.repeat(1, 3, 1)), explicit.attended(applied(one.at_percent(0.5), SOURCE, TARGET), v))
    wide = edit("a red circle", "a cat circle", windows={2: Window(0.0, 0.1)}).repeated(1, 2)
    assert sorted(wide.windows) == [2, 2 + LENGTH]


def test_more_columns_behind_keep_their_places():
    wide, source, target = edit("a red circle", "a blue big circle").extended(3), maps(4, LENGTH + 3), maps(5, LENGTH + 3)
    p = applied(wide.at_percent(0.5), source, target)
    total = 1 + target[..., 2:3]  # 'blue' is new, 'big' stands for 'red'
    assert_close(p[..., LENGTH:], source[..., LENGTH:] / total)
    sums_to_one(p)


class Call(QKSharing):
    """An attention of torch, with keys that are hidden by a bias, under another node's attention where `chained`."""

    kind = "cross"

    def __init__(self, qkv: list[torch.Tensor], heads_first: bool = False, chained: bool = False, bias: torch.Tensor | None = None):
        qkv = [explicit.split_heads(t, HEADS) if heads_first else t for t in qkv]
        self.heads_first, self.bias, self.width = heads_first, bias, WIDTH
        super().__init__(qkv, self.louder if chained else self.whole, not chained)
        self.cache = RunCache()

    def whole(self, q, k, v):
        return self.kernel(q, k, v, RowSelection(range(len(q))))

    def louder(self, q, k, v):
        return 1.5 * self.whole(q, k, v) + q.flatten(1).mean(1)[:, None, None]

    def kernel(self, q, k, v, rows):
        bias = None if self.bias is None else self.bias[rows.rows].to(q.dtype)
        out = F.scaled_dot_product_attention(*(t if self.heads_first else explicit.split_heads(t, HEADS) for t in (q, k, v)), bias)
        return out.transpose(1, 2).flatten(2)


WIDTH = 4
CASES = [
    dict(target="a blue circle"), dict(target="a completely circle"), dict(target="a red big circle"), dict(target="a circle"),
    dict(target="circle a red"), dict(target="a very red circle"), dict(target="a blue big circle", operation="refine"),
    dict(target="a red circle", weights={2: -1.0, 3: 0.0}), dict(target="a blue circle", operation="reweight only", weights={2: 3.0}),
    dict(target="a very blue big circle", weights={2: 2.0}), dict(target="a blue circle", settings=Settings(Window(), Window(), 0.6)),
    dict(target="a big circle", settings=Settings(Window(), Window(), 0.6)),
    dict(target="a blue big circle", windows={2: Window(0.0, 0.3), 3: Window(0.0, 0.9)}),
]  # fmt: skip


def drawn(rows: int, keys: int = LENGTH) -> list[torch.Tensor]:
    return [2 * draw(rows, n, HEADS * WIDTH, seed=i) for i, n in enumerate((QUERIES, keys, keys), 1)]


def run(call: QKSharing, edits: dict[int, tuple[int, ActiveEdit]]) -> QKSharing:
    call.edits = edits
    call.run()
    return call


@pytest.mark.parametrize("heads_first, chained", product([False, True], repeat=2))
@pytest.mark.parametrize("case", CASES)
def test_edited_attention_is_that_of_edited_probabilities(case, heads_first, chained):
    """Of the target alone; other rows and what another node's attention adds stay. A copy is what it makes of the source's queries and keys."""
    made, qkv = edit("a red circle", **case), drawn(3)
    p, own = explicit.probabilities(*qkv[:2], HEADS), Call(qkv, heads_first, chained)
    own.run()
    p[2] = explicit.edited(made, 0.5, p[1], p[2])
    change = explicit.attended(p, qkv[2]) - explicit.attended(explicit.probabilities(*qkv[:2], HEADS), qkv[2])
    active, wanted = made.at_percent(0.5), own.out + change
    if active.copies:
        wanted[2:] = run(Call([t[[0, 1, 1]] for t in qkv[:2]] + qkv[2:], heads_first, chained), {}).out[2:]
    call = run(Call(qkv, heads_first, chained), {2: (1, active)})
    assert torch.equal(call.out[:2], own.out[:2])
    assert_close(call.out, wanted, atol=1e-5, rtol=1e-5)
    words = [(1, 3), (2,), (), *((c,) for c in range(5))]  # more than a head is wide
    for asked in ([([0, 1], words[:2])], [([2], words)], [([1], words[1:]), ([0, 2], words[:-1])]):
        wanted = torch.cat([torch.stack([p[rows][..., list(c)].sum(-1).mean(1) for c in groups], 1) for rows, groups in asked])
        assert_close(call.word_maps(asked, LENGTH), wanted, atol=1e-5, rtol=1e-5)


def test_every_target_and_image_has_an_edit_of_its_own():
    qkv, active = drawn(6), [edit("a red circle", t).at_percent(0.5) for t in ("a red big circle", "a circle")]
    whole = run(Call(qkv), {row: (row % 2, active[row // 2 - 1]) for row in range(2, 6)}).out
    for row in range(2, 6):
        alone = run(Call([t[[row % 2, row]] for t in qkv]), {1: (0, active[row // 2 - 1])}).out
        assert_close(whole[row], alone[1])


@pytest.mark.parametrize("dtype, near", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_near(case, dtype, near):
    made, qkv = edit("a red circle", **case), drawn(2)
    low = [t.to(dtype) for t in qkv]
    p = explicit.probabilities(*(t.float() for t in low[:2]), HEADS)
    p[1] = explicit.edited(made, 0.5, p[0], p[1])
    call = run(Call(low), {1: (0, made.at_percent(0.5, low[2]))})
    wanted = explicit.attended(p, low[2].float())
    assert call.out.dtype == dtype
    assert float((call.out.float() - wanted).abs().max() / wanted.abs().max()) < near


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_on_a_deleted_word_alone_is_finite(dtype):
    """What is left for the other words is as good as nothing."""
    q, k, v = drawn(2)
    k[:, :3] = 0
    k[:, 2], q[:] = 300.0, 1.0
    call = run(Call([t.to(dtype) for t in (q, k, v)]), {1: (0, edit("a red circle", "a circle").at_percent(0.5, v.to(dtype)))})
    assert call.out.isfinite().all()


def test_weights_of_0_on_every_word_leave_nothing():
    everything = dict.fromkeys(range(LENGTH), 0.0)
    for operation in ("auto", "reweight only"):
        active = edit("a red circle", "a blue circle", operation, weights=everything).at_percent(0.5)
        assert not run(Call(drawn(2)), {1: (0, active)}).out[1].any()


def test_edits_made_in_inference_mode_serve_gradients():
    """The output is not changed in place where autograd needs it."""
    q, k, v = drawn(2)
    calls = [Call([q.requires_grad_(), k, v]) for _ in range(2)]
    calls[1].cache = calls[0].cache
    edits = ActiveEdits((edit("a red circle", "a red big circle"),), "", calls[0].cache)
    with torch.inference_mode():
        plain = run(calls[0], {1: (0, edits.at(0, 0.5, LENGTH, v))}).out
    found = run(calls[1], {1: (0, edits.at(0, 0.5, LENGTH, v))}).out
    found[1].square().sum().backward()
    assert torch.equal(found.detach(), plain) and q.grad.abs().flatten(1).amax(1).all()


def test_filling_gets_no_attention():
    made = edit("a red cat", "a very red cat sat")
    length = len(made.own) + 4
    bias = torch.zeros(2, 1, 1, length)
    bias[..., len(made.own) :] = -torch.inf
    qkv = drawn(2, length)
    filled = run(Call(qkv, bias=bias), {1: (0, made.filled(length).at_percent(0.5))}).out
    short = [qkv[0], *(t[:, : len(made.own)] for t in qkv[1:])]
    assert_close(filled, run(Call(short), {1: (0, made.at_percent(0.5))}).out)


@pytest.mark.parametrize("make, message", [
    (lambda: Window(0.5, 0.2), "window runs from 0.5 to 0.2"),
    (lambda: Settings(alpha=1.5), "alpha is 1.5; give 0"),
    (lambda: LocalBlend((), (), threshold=2.0), "threshold is 2.0; give 0"),
    (lambda: LocalBlend((), (), start=-1.0), "start_percent is -1, but end_percent is 1"),
    (lambda: LocalBlend((), (), start=0.5, end=0.2), "start_percent is 0.5, but end_percent is 0.2"),
    (lambda: LocalBlend((), (), spread=-1), "spread is -1 cells; give 0 or more"),
])  # fmt: skip
def test_bad_settings_are_refused(make, message):
    refused(message, make)


SIZE = (4, 4)


def spots(*places, column: int = 1) -> torch.Tensor:
    """Maps (3, 4, 4) of the tokens of a text, one of which is looked at from some cells only."""
    maps = torch.zeros(3, 16)
    for place in places:
        maps[column, place] = 0.9
    return maps.unflatten(-1, SIZE)


NONE = ((), ())


def blending(edited=(((1,), (1,)),), protected=(NONE,), rows=Rows(1, 1), **shape):
    return Blending(LocalBlend(edited, protected, **shape), rows)


def cells(mask) -> list[int]:
    return mask.flatten().nonzero().flatten().tolist()


def seen(found: Blending, *maps: torch.Tensor, level: float = 1.0) -> list[list[int]]:
    """The cells of each target's mask after a level at which source and targets looked at these places."""
    found.on_level(level)
    found.add(torch.stack([torch.stack([tokens[list(word)].sum(0) for word in found.words(n)]) for n, tokens in enumerate(maps)]))
    return [cells(m) for m in found.mask(SIZE)]


def test_a_map_is_cut_at_a_share_of_its_own_maximum():
    values = torch.tensor([[[1.0, 0.5], [0.2, 0.0]], [[10.0, 5.0], [2.0, 0.0]]])
    for m in cut(values, (2, 2), 0.3, spread=0):
        assert cells(m) == [0, 1]
    assert cut(values, (2, 2), 0.3, spread=1).all()
    assert not cut(torch.zeros(1, 2, 2), (2, 2), 0.3, spread=1).any()
    assert cut(values, (8, 8), 0.3, spread=0).shape == (2, 8, 8)


def test_a_flat_map_covers_nothing_and_hides_no_other():
    """As maps of colors are, beside those of things: from 0, a share of 0.3 covers all of either."""
    flat = 1 + 0.01 * torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
    thing = torch.zeros(1, 4, 4)
    thing[0, 1, 1] = 1.0
    assert not cut(flat, (4, 4), 0.3, spread=0).any() and cut(flat, (4, 4), 0.0, spread=0).all()
    assert cells(cut(flat + thing, (4, 4), 0.3, spread=0)) == cells(cut(thing, (4, 4), 0.3, spread=0)) == [5]


@pytest.mark.parametrize("source, target, weights, words", [
    ("a red circle on white", "a blue circle on white", "", (["red", "circle"], ["blue", "circle"])),
    ("a red striped circle", "a blue striped circle", "", (["red", "striped", "circle"], ["blue", "striped", "circle"])),
    ("a circle and a star", "a striped circle and a star", "", (["circle"], ["striped", "circle"])),
    ("a striped circle and a star", "a circle and a star", "", (["striped", "circle"], ["circle"])),
    ("a cat on a mat", "a dog on a mat", "", (["cat"], ["dog"])),
    ("a red circle, white", "a very red circle, white", "", (["red", "circle"], ["very", "red", "circle"])),
    ("a red circle", "a red circle", "red: 4", (["red", "circle"], ["red", "circle"])),
])  # fmt: skip
def test_a_star_is_what_changes_with_the_things_it_describes(source, target, weights, words):
    edits = PromptEdits.from_prompts(read(source, PIECES), [read(target, PIECES)], "auto", weights)
    (found,) = edits.blend("*", "", (1, 1)).edited
    for prompt, columns, named in zip(edits.prompts, found, words):
        assert [w.text for w in prompt.words if set(w.columns) & set(columns)] == named


def test_the_text_says_what_a_weight_leaves_to_other_words():
    edits = PromptEdits.from_prompts(read("a red circle", PIECES), [read("a red circle", PIECES)], "auto", "red: 4")
    assert "x 4 red: the words behind it carry its meaning too; if little changes, weight 'red circle'" in edits.text()
    whole = PromptEdits.from_prompts(read("a red circle", PIECES), [read("a red circle", PIECES)], "auto", "red circle: 4")
    assert whole.text().endswith("x 4 red\n  x 4 circle")


def test_a_blur_spreads_evenly():
    assert_close(blurred(torch.ones(1, 1, 5, 9), 1.0), torch.ones(1, 1, 5, 9))
    spot = torch.zeros(1, 1, 13, 13)
    spot[..., 6, 6] = 1
    made = blurred(spot, 1.0)[0, 0]
    assert_close(made.sum(), torch.tensor(1.0))
    assert_close(made, made.flip(0).T)
    assert_close(made[6, 6] / made[6, 7], torch.tensor(0.5).exp())
    assert int(cut(spot[0], (13, 13), 0.3, spread=0, blur=1.0).sum()) == 9 and int(cut(spot[0], (13, 13), 0.3, spread=0).sum()) == 1


def test_the_mask_is_the_union_of_the_sources_and_the_targets():
    assert blending().mask(SIZE) is None  # before the first map
    assert seen(blending((((1,), (2,)),)), spots(0), spots(15, column=2)) == [[0, 1, 4, 5, 10, 11, 14, 15]]
    assert seen(blending(spread=0), spots(0), spots(15)) == [[0, 15]]
    assert len(seen(blending(spread=2), spots(0), spots(0))[0]) == 9
    assert seen(blending((NONE,), (((1,), (1,)),)), spots(0), spots(0)) == [list(range(1, 16))]  # protected words alone


def test_rows_of_a_batch_are_the_source_then_every_target():
    rows = Rows(2, 2)
    assert rows.total == 6 and list(rows.source) == [0, 1] and [list(rows.target(n)) for n in (0, 1)] == [[2, 3], [4, 5]]


def test_every_target_has_a_mask_of_its_own_words():
    words = (((1,), (1,)), ((2,), (2,)), NONE)
    source = torch.maximum(spots(0), spots(15, column=2))
    found = seen(blending(words, (NONE,) * 3, Rows(1, 3), spread=0), source, spots(1), spots(14, column=2), spots(7))
    assert found == [[0, 1], [14, 15], list(range(16))]


def test_protected_words_are_taken_out_without_spreading():
    found = blending(protected=(((2,), (2,)),))
    assert seen(found, spots(0), spots(0) + spots(1, column=2)) == [[0, 4, 5]]


def test_maps_are_summed_over_levels_and_a_level_counts_once():
    found = blending(threshold=0.4)
    for level, place in ((1.0, 0), (0.9, 0), (0.5, 5), (0.5, 5)):
        seen(found, spots(), spots(place), level=level)
    assert_close(found.sums[1, 0].flatten()[[0, 5]], torch.tensor([1.8, 0.9]))


def test_a_blend_acts_from_its_start_up_to_its_end():
    half, whole = LocalBlend((), (), start=0.2, end=0.6), LocalBlend((), ())
    assert [half.acts(p) for p in (0.1, 0.2, 0.5, 0.6, 1.0)] == [False, True, True, False, False]
    assert whole.acts(0.9) and whole.acts(1.0)


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 2, 4, 4)])
def test_off_the_mask_targets_are_the_source_bit_for_bit(shape):
    found, x = blending(rows=Rows(2, 2)), draw(6, *shape)
    mask = torch.zeros(4, *SIZE, dtype=torch.bool)
    mask[:, 0, 0] = True
    out = found.blended(x, mask)
    assert torch.equal(out[:2], x[:2])
    for first in (2, 4):
        assert torch.equal(out[first : first + 2, ..., 0, 0], x[first : first + 2, ..., 0, 0])
        assert torch.equal(out[first : first + 2, ..., 1:, :], x[:2, ..., 1:, :])
