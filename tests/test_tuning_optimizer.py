"""Muon and AdamW as one optimiser: every weight has one of them, and a state that is restored goes on alike."""

from __future__ import annotations

import copy

import torch
from torch import nn

from goodspeed.tuning.optimizer import Together, muon_and_adamw, orthogonalise
from tests.tiny_models import tiny_llama


def test_a_matrix_becomes_nearly_orthogonal_along_its_own_directions() -> None:
    matrices = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    made = orthogonalise(matrices)
    assert made.shape == matrices.shape
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    singular = torch.linalg.svdvals(made)
    assert ((singular > 0.6) & (singular < 1.3)).all()
    along = torch.einsum("nij,nik,nlk->njl", left, made, right)  # diagonal, if it has the same singular vectors
    assert torch.allclose(along, torch.diag_embed(torch.diagonal(along, dim1=-2, dim2=-1)), atol=1e-4)


def test_every_trained_weight_is_in_one_group_and_embeddings_are_adamws() -> None:
    model: nn.Module = tiny_llama()
    model.get_submodule("model.layers.0.mlp.up_proj").requires_grad_(False)
    optimizer = muon_and_adamw(model, 5e-3)
    (matrices, others) = optimizer.param_groups
    assert (matrices["lr"], others["lr"]) == (5e-3, 3e-3)
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    seen = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == trained
    assert all(weight.ndim == 2 for weight in matrices["params"])
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert any("embed" in names[id(weight)] for weight in others["params"])
    assert not any("embed" in names[id(weight)] or "lm_head" in names[id(weight)] for weight in matrices["params"])


def steps(model: nn.Module, optimizer: Together, count: int, seed: int) -> None:
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(seed))
    for _ in range(count):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def test_a_state_that_is_restored_goes_on_alike_and_learns() -> None:
    whole: nn.Module = tiny_llama()
    optimizer = muon_and_adamw(whole, 5e-3)
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    before = whole(input_ids=tokens, labels=tokens).loss.item()
    steps(whole, optimizer, 3, seed=0)
    resumed: nn.Module = tiny_llama()
    resumed.load_state_dict(whole.state_dict())
    again = muon_and_adamw(resumed, 1.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]
    for one, other in ((whole, optimizer), (resumed, again)):
        steps(one, other, 3, seed=0)
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert whole(input_ids=tokens, labels=tokens).loss.item() < before - 0.3
