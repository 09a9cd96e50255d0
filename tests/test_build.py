"""What computes an update: blocks that are computed again or compiled, and the bfloat16 copy of the weights."""

import copy

import pytest
import torch
from test_cuda import BASE, compiled_quickly, sampled, settings
from test_distributed import difference, logprobs_of, make_rows, tiny

import lib.logprobs
import train
from lib.build import build, compute_in_copy, load_sampler, sync_sampler
from lib.checks import check_sampler
from lib.decode import sample_batch
from lib.logprobs import completion_logprobs, own_micro_batches, token_logprobs
from lib.model import load_model
from lib.processes import wrap_blocks


def gradients_of(model, rows):
    """Of the sum of all log-probabilities, over micro-batches of several shapes."""
    model.zero_grad()
    for trees in own_micro_batches(model, rows, 40):
        token_logprobs(model, lib.logprobs.make_batch(rows, trees)).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_computed_again_or_compiled_give_the_same_gradients(monkeypatch, share, compiled):
    compiled_quickly(monkeypatch)
    model, rows = tiny(), make_rows(tiny())
    wrapped = copy.deepcopy(model)
    wrap_blocks(wrapped, share, compiled)
    expected, found = gradients_of(model, rows), gradients_of(wrapped, rows)
    assert difference(found, expected) == 0 if not compiled else difference(found, expected) < 1e-5
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.1


def test_the_share_is_that_of_the_blocks_computed_again():
    kept = []
    for share in (0.0, 0.5, 1.0):
        model = tiny()
        wrap_blocks(model, share)
        kept.append(0)

        def pack(tensor):
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logprobs_of(model, make_rows(tiny()))
    assert kept[1] == pytest.approx((kept[0] + kept[2]) / 2, rel=0.02) and kept[2] < 0.5 * kept[0]


def test_the_sampler_runs_nothing_compiled(monkeypatch):
    calls = []

    def compile(forward):
        return lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile)
    model = tiny()
    wrap_blocks(model, 1.0, True)
    sample_batch(model, [[1, 5]], torch.rand(4, 8, dtype=torch.double), 1.0, {2}, bool)
    assert not calls
    completion_logprobs(model, make_rows(tiny()))
    assert calls


@pytest.mark.parametrize("words", ["", "0.5", "1"])
def test_gradient_checkpointing_alone_is_all_blocks(words):
    args = train.parse_args(f"--gradient-checkpointing {words}".split())
    assert args.gradient_checkpointing == float(words or 1) and not args.compile
    assert train.parse_args([]).gradient_checkpointing == 0 and train.parse_args(["--compile"]).compile


@pytest.mark.parametrize("share", ["1.5", "-0.1", "much"])
def test_a_wrong_share_is_refused(capsys, share):
    with pytest.raises(SystemExit) as end:
        train.parse_args(["--gradient-checkpointing", share])
    assert end.value.code == 2 and "--gradient-checkpointing" in capsys.readouterr().err


# The bfloat16 copy


def in_bfloat16(lr=0.1):
    """(model, the copy that computes, optimizer)."""
    model, half = load_model(BASE)[0], load_model(BASE, "bfloat16")[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    compute_in_copy(model, half, optimizer)
    return model, half, optimizer


def is_rounded(half, model):
    """Whether the copy's weights are the model's, rounded."""
    weights = zip(half.parameters(), model.parameters())
    return all(torch.equal(weight, master.bfloat16()) for weight, master in weights)


def test_the_copys_gradients_are_those_of_autocast_up_to_rounding():
    _, rows = sampled("cpu")
    exact, autocast, (model, half, _) = load_model(BASE)[0], load_model(BASE)[0], in_bfloat16()
    results = [gradients_of(exact, rows)]
    with torch.autocast("cpu", torch.bfloat16):
        results.append(gradients_of(autocast, rows))
    results.append(gradients_of(model, rows))
    assert {gradient.dtype for gradient in results[2].values()} == {torch.float32}
    assert all(weight.grad is None for weight in half.parameters())

    def distance(some, others):
        """In shares of the exact gradient's norm."""
        square = sum((some[name] - others[name]).square().sum() for name in some)
        return (square / sum(gradient.square().sum() for gradient in results[0].values())).sqrt().item()

    off, usual = distance(results[2], results[0]), distance(results[1], results[0])
    assert 0 < off < 2 * usual + 0.01 < 0.1 and distance(results[2], results[1]) < 0.05


def test_gradients_of_micro_batches_are_added_in_float32():
    """A thousand of 1 and one of 1024: bfloat16 would stop at 256."""
    weight, master = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    model, half = torch.nn.Module(), torch.nn.Module()
    model.weight, half.weight = torch.nn.Parameter(master), torch.nn.Parameter(weight)
    compute_in_copy(model, half, torch.optim.SGD(model.parameters(), lr=1.0))
    for factor in [1.0] * 1000 + [1024.0]:
        (half.weight * factor).sum().backward()
    assert model.weight.grad.tolist() == [2024.0, 2024.0]


def test_an_update_refreshes_the_copy_once_a_mini_batch(monkeypatch):
    _, rows = sampled("cpu")
    (model, half, optimizer), steps, copies = in_bfloat16(), [], []
    optimizer.register_step_post_hook(lambda *_: steps.append(is_rounded(half, model)))
    copy_weights = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *pair: copies.append(1) or copy_weights(*pair))
    before = copy.deepcopy(half.state_dict())
    metrics = train.update(model, None, optimizer, rows, settings("cpu", kl=0.0, ppo_epochs=2), 0)
    assert steps == [True] * metrics["updates"] and len(copies) == metrics["updates"] > 2
    assert any(not torch.equal(weight, before[name]) for name, weight in half.state_dict().items())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32} and metrics["skipped"] == 0
    assert any(not torch.equal(master, master.bfloat16().float()) for master in model.parameters())


def test_a_skipped_step_leaves_model_and_copy_alone():
    _, rows = sampled("cpu", G=4)
    (model, half, optimizer), before = in_bfloat16(), load_model(BASE)[0]
    metrics = train.update(model, None, optimizer, rows, settings("cpu", kl=0.0, grad_skip=0.0), 0)
    assert metrics["skipped"] == metrics["updates"] > 0 and is_rounded(half, before)
    assert difference(dict(model.named_parameters()), dict(before.named_parameters())) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("samples", [True, False])
def test_build_trains_float32_weights_and_samples_with_what_computes(dtype, samples):
    """samples: in the main process; the others of --shard none build without a sampler."""
    args = train.parse_args(f"--dtype {dtype} --kl 0.1 --lr 1e-3 --max-new-tokens 20".split())
    sampler = load_sampler(args, BASE, weights=True)[0] if samples else None
    model, reference, optimizer = build(args, None, sampler, 100)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert reference.dtype == getattr(torch, dtype) and (sampler is model) == (samples and dtype == "float32")
    before = completion_logprobs(model, rows := sampled("cpu", G=4)[1])
    train.update(model, reference, optimizer, rows, args, 0)
    sync_sampler(sampler, [], model, args)
    after = completion_logprobs(model, rows)
    assert max((one - other).abs().max() for one, other in zip(before, after)) > 0.01
    if samples:
        assert sampler.dtype == getattr(torch, dtype)
        check_sampler(sampler, 100)
        again = completion_logprobs(sampler, rows)
        assert max((one - other).abs().max() for one, other in zip(again, after)) == 0
        assert dtype == "float32" or is_rounded(sampler, model)


def test_without_engines_weights_are_loaded_once_in_float32(monkeypatch):
    calls = []
    import lib.build

    monkeypatch.setattr(
        lib.build, "load_model", lambda *args, **more: calls.append(args) or load_model(*args, **more)
    )
    args = train.parse_args("--kl 0".split())
    build(args, None, load_sampler(args, BASE, weights=True)[0], 100)
    assert [call[1] for call in calls] == ["float32"]


def test_the_head_uses_tf32_only_where_it_is_exact():
    """bfloat16 numbers have 8 bits of a fraction, TF32 has 11, and both the same exponents."""
    for dtype, allowed in (("bfloat16", True), ("float32", False), ("bfloat16", True)):
        model = load_model(BASE, dtype)[0]
        logits = model(torch.tensor([[1, 5, 6]])).logits
        assert torch.backends.cuda.matmul.allow_tf32 == allowed and logits.dtype == torch.float32
