"""One place for several names, and names without a place."""

import torch

from fx_d2.modeling.convert.renamed import rename_all, same


def rename(key: str) -> tuple[str, ...] | None:
    return {"a": ("x",), "b": ("x",), "c": ("y", "z"), "buffer": ()}.get(key)


def test_names_with_a_place_with_none_and_unknown_ones() -> None:
    source = {"a": torch.ones(1), "c": torch.zeros(2), "buffer": torch.ones(3), "strange": torch.ones(4)}
    result = rename_all("form", source, rename)
    assert (result.layout, set(result.state)) == ("form", {"x", "y", "z"})
    assert result.state["y"] is result.state["z"] is source["c"]
    assert (result.unused, result.unknown, result.notes) == (["buffer"], ["strange"], [])


def test_names_of_one_tensor_agree_in_silence_and_disagree_aloud() -> None:
    first = torch.arange(3.0)
    for other in (first, first.clone()):
        assert rename_all("form", {"a": first, "b": other}, rename).notes == []
    for other in (first + 1, torch.arange(4.0)):
        result = rename_all("form", {"a": first, "b": other}, rename)
        assert result.state["x"] is first
        assert result.notes == ["names of one tensor hold different values, the first was used: b differs from a"]


def test_same() -> None:
    a = torch.tensor([1.0, float("nan")])
    assert same(a, a.view(2)), "aliases are one tensor whatever is in it"
    assert not same(a, a[:1]) and same(torch.ones(2), torch.ones(2)) and not same(torch.ones(2), torch.zeros(2))
