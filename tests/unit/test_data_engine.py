"""``DataEngine``: data sets as torch ones, alone and several together, and the settings that name them."""

import json
import logging
import subprocess
import sys

import pandas
import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset

from samplerpool import DataArguments, DataEngine
from samplerpool.data.dataset_info import DatasetInfo, dataset_infos
from samplerpool.data.rows import rows_from_dataset
from samplerpool.errors import BadRow, DataFileError, InvalidParameter, UsageError


def text(role, value):
    return {"role": role, "content": [{"type": "text", "value": value}]}


def turns(*values):
    return [text(("user", "assistant")[place % 2], value) for place, value in enumerate(values)]


def asked(samples):
    return [sample["messages"][0]["content"][0]["value"] for sample in samples]


@pytest.fixture
def folder(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))

    write("chat.jsonl", [{"messages": turns("a", "b", "c", "d"), "id": 1}, {"messages": turns("e", "f")}])
    write("alpaca.jsonl", [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(4)])
    write("broken.jsonl", [{"prompt": "x"}, "{no", {"text": "y"}, {"messages": [{"role": "bot"}]}])
    return tmp_path


def sets(folder, **settings):
    """The two good files, by name, with the same settings."""
    names = {"chat": "chat.jsonl", "alpaca": "alpaca.jsonl"}
    return {name: {"path": str(folder / file), **settings} for name, file in names.items()}


def test_it_is_a_torch_data_set_of_samples(folder):
    engine = DataEngine(folder / "chat.jsonl")
    assert isinstance(engine, DataEngine)
    assert isinstance(engine, Dataset)
    assert not isinstance(engine, IterableDataset)
    assert type(engine).__name__ == "DataEngine"
    expected = [
        {"messages": turns("a", "b", "c", "d"), "id": 1, "_dataset_name": "default"},
        {"messages": turns("e", "f"), "_dataset_name": "default"},
    ]
    assert len(engine) == 2
    assert list(engine) == [engine[0], engine[-1]] == engine[:] == engine[[0, 1]] == expected
    with pytest.raises(IndexError):
        engine[2]
    with pytest.raises(IndexError):
        engine[-3]


def test_its_module_does_not_load_torch_but_an_engine_is_torchs_own_even_if_torch_comes_later():
    script = (
        "import sys; from samplerpool import DataEngine; assert 'torch' not in sys.modules;"
        "engine = DataEngine({'a': {'path': sys.argv[1], 'streaming': True}});"
        "import torch; print(isinstance(engine, torch.utils.data.IterableDataset))"
    )
    command = [sys.executable, "-c", script, __file__]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (child.stdout.strip(), child.returncode) == ("True", 0), child.stderr


def test_the_three_forms(folder):
    path = folder / "chat.jsonl"
    inference = DataEngine(path, form="inference")
    assert [(sample["messages"], sample["reference"]) for sample in inference] == [
        (turns("a", "b", "c"), text("assistant", "d")),
        (turns("e"), text("assistant", "f")),
    ]
    training = DataEngine(path, form="training")
    expected = [turns("a", "b"), turns("a", "b", "c", "d"), turns("e", "f")]
    assert [sample["messages"] for sample in training] == expected
    assert [training[index]["messages"] for index in range(len(training))] == expected
    with pytest.raises(InvalidParameter, match="whole, inference, training"):
        DataEngine(path, form="train")


def test_several_named_sets_with_size_and_weight_from_yaml(folder):
    (folder / "info.yaml").write_text(
        "chat: {path: chat.jsonl, converter: openai, weight: 2}\n"
        "alpaca:\n  path: alpaca.jsonl\n  size: 3\n  source: local\n"
        "more: {path: alpaca.jsonl, weight: 0.5}\n"
    )
    engine = DataEngine(folder / "info.yaml")
    assert asked(engine) == ["a", "a", "e", "e", "q0", "q1", "q2", "q1", "q3"]
    assert asked(engine[:]) == asked(engine)
    assert [sample["_dataset_name"] for sample in engine] == ["chat"] * 4 + ["alpaca"] * 3 + ["more"] * 2
    training = DataEngine(folder / "info.yaml", form="training")
    assert [len(sample["messages"]) for sample in training] == [2, 2, 4, 4, 2, 2] + [2] * 5
    assert training[:] == list(training)
    rows = list(rows_from_dataset(folder / "info.yaml"))
    assert [row.index for row in rows] == list(range(9))
    assert rows[4].columns == {"instruction": "q0", "input": "", "output": "a0", "_dataset_name": "alpaca"}


def test_named_sets_take_the_split_of_a_folder_with_files_of_several_formats(folder):
    (folder / "mixed").mkdir()
    for name, text in (
        ("a-train.jsonl", '{"prompt": "not this"}\n'),
        ("b-test.csv", "prompt,n\nfrom a table,1\nand its second row,2\n"),
        ("c-test.txt", "from a text\n"),
        ("d-test.json", '[{"instruction": "from a list", "input": "", "output": "x"}]'),
    ):
        (folder / "mixed" / name).write_text(text)
    (folder / "info.yaml").write_text(
        "tests: {path: mixed, split: test}\nfirst: {path: mixed, split: test, size: 1, weight: 2}\n"
    )
    wanted = ["from a table", "and its second row", "from a text", "from a list", *["from a table"] * 2]
    engine = DataEngine(DataArguments(train_dataset=str(folder / "info.yaml")))
    assert asked(engine) == wanted
    assert [sample["_dataset_name"] for sample in engine] == ["tests"] * 4 + ["first"] * 2


def test_arguments_name_training_data_before_those_for_evaluation(folder):
    paths = {"train_dataset": str(folder / "alpaca.jsonl"), "eval_dataset": str(folder / "chat.jsonl")}
    assert asked(DataEngine(DataArguments(**paths))) == ["q0", "q1", "q2", "q3", "a", "e"]
    assert asked(DataEngine(DataArguments(eval_dataset=paths["eval_dataset"]))) == ["a", "e"]
    with pytest.raises(BadRow, match=r"chat.jsonl, line 1: a row needs an instruction"):
        list(DataEngine(DataArguments(**paths, converter="alpaca")))
    with pytest.raises(InvalidParameter, match="name no data set"):
        DataEngine(DataArguments())


def test_streams(folder):
    engine = DataEngine(sets(folder, streaming=True, size=1))
    assert isinstance(engine, IterableDataset)
    assert asked(engine) == ["a", "q0"] == asked(engine)
    with pytest.raises(TypeError, match="no length"):
        len(engine)
    with pytest.raises(UsageError, match="not picked"):
        engine[0]
    assert [row.index for row in engine.rows()] == [0, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_loader_gets_each_sample_once(folder, streaming):
    """Its worker processes share the files, and of a stream each takes its part."""
    loader = DataLoader(
        DataEngine(sets(folder, streaming=streaming)),
        batch_size=2,
        num_workers=2,
        collate_fn=list,
        shuffle=not streaming,
        multiprocessing_context="fork",
    )
    assert sorted(asked(sample for batch in loader for sample in batch)) == ["a", "e", "q0", "q1", "q2", "q3"]


def test_errors_name_file_row_and_column(folder):
    engine = DataEngine(folder / "broken.jsonl")
    assert len(engine) == 4
    assert asked([engine[0]]) == ["x"]
    for index, words in enumerate(
        ["line 2: not valid JSON", "line 3: a row needs", "line 4: messages.0.: the role"], 1
    ):
        with pytest.raises(Exception, match=f"^broken.jsonl, {words}"):
            engine[index]
    rows = list(rows_from_dataset(engine))
    assert [row.error is None for row in rows] == [True, False, False, False]
    with pytest.raises(BadRow, match="line 2"):
        list(engine)
    with pytest.raises(BadRow, match="line 1: messages: there is no turn"):
        len(DataEngine(folder / "broken.jsonl", form="training"))


def test_the_choice_of_a_converter_is_logged(folder, caplog):
    with caplog.at_level(logging.INFO, "samplerpool"):
        list(DataEngine(folder / "alpaca.jsonl"))
    assert caplog.messages == [
        f"{folder / 'alpaca.jsonl'}: converter alpaca, chosen by the columns instruction, input, output"
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["must be names of data sets"]),
        ({"a": "file.jsonl"}, ["a: path and other settings expected, not 'file.jsonl'"]),
        (
            {
                "a": {"pth": "x", "size": 0, "weight": "2"},
                "b": {"path": "x", "source": "ftp", "streaming": 1, "size": True, "weight": float("nan")},
            },
            [
                "a: path is missing",
                "'pth'",
                "path",
                "a: size must be above 0, not 0",
                "a: weight must be a number, not '2'",
                "b: source must be one of local, hf_hub, not 'ftp'",
                "b: streaming must be true or false, not 1",
                "b: size must be a whole number, not True",
                "b: weight must be above 0",
            ],
        ),
        ({"a": {"path": "x", "converter": "alpacca"}}, ["'alpacca'", "'alpaca'"]),
        ({"a": {"path": "x", "streaming": True}, "b": {"path": "y"}}, ["streams"]),
    ],
)
def test_settings_that_cannot_be_are_all_named(settings, words):
    with pytest.raises(InvalidParameter) as caught:
        dataset_infos(settings)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_yaml_files_that_are_none(tmp_path):
    with pytest.raises(DataFileError, match="There is no data file"):
        dataset_infos(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(DataFileError, match="not valid YAML"):
        dataset_infos(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("- a\n- b\n")
    with pytest.raises(InvalidParameter, match="must be names of data sets"):
        dataset_infos(tmp_path / "a.yaml")


def test_paths_of_a_yaml_file_are_beside_it_or_here_or_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "info.yml").write_text("a: {path: a.jsonl}\nb: {path: b.jsonl}\nc: {path: owner/name}\n")
    paths = [info.path for info in dataset_infos("sub/info.yml", converter="alpaca")]
    assert paths == ["sub/a.jsonl", "b.jsonl", "owner/name"]
    assert dataset_infos("x.jsonl", converter="alpaca") == [DatasetInfo(path="x.jsonl", converter="alpaca")]


def test_a_yaml_file_of_the_hub_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "info.yaml").write_text("a: {path: owner/data, converter: alpaca}")
    asked = []

    def download(**where):
        asked.append(where)
        return str(tmp_path / "info.yaml")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert dataset_infos("owner/name/info.yaml") == [DatasetInfo(name="a", path="owner/data", converter="alpaca")]
    assert asked == [{"repo_id": "owner/name", "filename": "info.yaml", "repo_type": "dataset"}]
    (tmp_path / "info.yaml").write_text("a: {path: owner/data, converter: os.system}")
    with pytest.raises(InvalidParameter, match="may not name functions"):
        dataset_infos("owner/name/info.yaml")


def test_a_data_frame_is_not_gone_through_by_columns():
    with pytest.raises(UsageError, match="to_dict"):
        rows_from_dataset(pandas.DataFrame({"prompt": ["a"]}))
