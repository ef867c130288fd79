"""What ``peft_config`` and ``--lora`` mean, and how requests name an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samplerpool.config.adapters import AdapterPlan, adapter_plan, lora_config
from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.arena import Region
from samplerpool.engine.prefix import Prefix, PrefixIndex
from samplerpool.errors import InvalidParameter, ModelNotFound
from samplerpool.model.source import resolve_adapter


def plan(where: Any, **more: Any) -> AdapterPlan:
    return adapter_plan({"name": "lora", "adapter_name_or_path": where, **more})


def test_paths_are_merged_and_names_are_attached() -> None:
    assert adapter_plan(None) == AdapterPlan()
    assert plan("a/b") == plan(["a/b"]) == plan(Path("a/b")) == AdapterPlan(merged=("a/b",))
    assert plan(["a", "b"]).paths == ("a", "b")
    assert plan({"x": "a", "y": "b"}) == AdapterPlan(attached={"x": "a", "y": "b"})
    assert plan({"x": "a", "y": "b"}).paths == ("a", "b")
    assert plan({"x": "a"}, merge=True) == AdapterPlan(merged=("a",))
    assert adapter_plan('{"name": "peft", "adapter_name_or_path": "a"}') == AdapterPlan(merged=("a",))


def test_one_that_is_not_merged_is_called_by_its_folder_and_switched_on() -> None:
    assert plan("out/my.lora v2/", merge=False) == AdapterPlan(
        attached={"my-lora-v2": "out/my.lora v2/"}, active="my-lora-v2"
    )
    assert plan("base", merge=False).active == "adapter-base"


def test_settings_of_training_are_left_to_the_adapter() -> None:
    assert plan("a", r=16, lora_alpha=32, target_modules="all-linear") == AdapterPlan(merged=("a",))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"name": "lora"}, "needs adapter_name_or_path"),
        ({"name": "lora", "adapter_name_or_path": []}, "needs adapter_name_or_path"),
        ({"name": "lora", "adapter_name_or_path": ["a", ""]}, "needs adapter_name_or_path"),
        ({"name": "lora", "adapter_name_or_path": {}}, "names no adapter"),
        ({"name": "lora", "adapter_name_or_path": {"a.b": "x"}}, "letters, digits.* not 'a.b'"),
        ({"name": "lora", "adapter_name_or_path": {"base": "x"}}, "means the model without any"),
        ({"name": "lora", "adapter_name_or_path": {"x": 3}}, "'x' needs a path or a hub id, not 3"),
        ({"name": "lora", "adapter_name_or_path": ["a", "b"], "merge": False}, "need names"),
        ({"name": "lora", "adapter_name_or_path": "a", "merge": "no"}, "merge must be true or false, not 'no'"),
        ({"name": "lora", "adapter_path": "a"}, "'adapter_path'; did you mean 'adapter_name_or_path'"),
        ({"name": "freeze", "adapter_name_or_path": "a"}, "name must be lora or peft, not 'freeze'"),
        ("nonsense", "must be a mapping, or one as JSON .* not 'nonsense'[.]$"),
        ('{"name": "lora"', r"which is broken JSON \(Expecting ',' delimiter"),
    ],
)
def test_what_cannot_be_says_what_is_wrong(config: Any, match: str) -> None:
    with pytest.raises(InvalidParameter, match=match):
        adapter_plan(config)


def test_the_option_takes_paths_with_names_or_without() -> None:
    assert lora_config([]) is None
    assert adapter_plan(lora_config(["x=a=b", "y-2=c"])) == AdapterPlan(attached={"x": "a=b", "y-2": "c"})
    assert adapter_plan(lora_config(["./r=8/a", "b"])) == AdapterPlan(merged=("./r=8/a", "b"))
    with pytest.raises(InvalidParameter, match=r"all adapters a name .* or none"):
        lora_config(["x=a", "b"])
    with pytest.raises(InvalidParameter, match="'x' is given twice"):
        lora_config(["x=a", "x=b"])


def test_a_request_names_an_adapter_like_any_parameter() -> None:
    assert sampling_params(adapter="x").given() == {"adapter": "x"}
    launch, none = sampling_params(adapter="x"), sampling_params()
    assert resolve(none).adapter == "base"
    assert resolve(none, launch).adapter == "x"
    assert resolve(sampling_params(adapter="base"), launch).adapter == "base"
    for wrong in ("", 3, ["x"]):
        with pytest.raises(InvalidParameter, match="adapter must be a non-empty string"):
            sampling_params(adapter=wrong)


def test_a_prefix_is_found_only_with_its_adapter() -> None:
    index, tokens = PrefixIndex(), list(range(20))
    theirs = Prefix("theirs", tokens, Region(0, 32), 20, "x")
    index.add(theirs)
    index.keep(theirs)
    assert index.find(tokens, 19, "base") == index.find(tokens, 19, "y") == (None, 0, 0)
    assert index.find(tokens, 19, "x") == (theirs, 19, 19)
    index.remove(theirs)
    assert index.find(tokens, 19, "x") == (None, 0, 0)


def test_where_an_adapter_is(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    with pytest.raises(ModelNotFound, match=r"has no adapter_config\.json"):
        resolve_adapter(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    assert resolve_adapter(str(folder)) == folder
    assert resolve_adapter("owner/name") is None
    for nowhere in ("./nowhere", str(tmp_path / "no"), "a b"):
        with pytest.raises(ModelNotFound, match="no such directory"):
            resolve_adapter(nowhere)
