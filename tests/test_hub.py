"""Names of models: what stands for one is found out in seconds, with the hub out of reach, slow or there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from fk_steer import load_reward
from fk_steer.evaluation.geneval.detector import Mask2FormerDetector
from fk_steer.loading import load_pipeline, load_preview
from fk_steer.rewards.loading import RewardLoadError
from fk_steer.testing import save_clip, sd
from fk_steer.training.data import read_preferences
from llava_reward_guide import LlavaReward, hub
from llava_reward_guide.data.hub_sets import load_hub_set
from llava_reward_guide.data.items import hub_rows
from llava_reward_guide.files import CheckpointError
from llava_reward_guide.hub import locate


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and nothing known of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_silent_since", None)
    monkeypatch.setattr(hub, "_found", set())
    return tmp_path / "cache"


class Hub:
    """Counts what it is asked, and answers with what it is given."""

    def __init__(self, answer=None):
        self.asked, self.answer = [], answer

    def __call__(self, repository, **options):
        self.asked.append(repository)
        if isinstance(self.answer, Exception):
            raise self.answer
        if callable(self.answer):
            self.answer()


@pytest.fixture
def answers(monkeypatch):
    """Makes the hub answer."""

    def install(answer=None):
        made = Hub(answer)
        monkeypatch.setattr(HfApi, "model_info", made)
        monkeypatch.setattr(HfApi, "dataset_info", made)
        return made

    return install


def failure(kind, status):
    return kind("no", response=SimpleNamespace(status_code=status, headers={}, request=None))


def snapshot(cache, repository, commit="a" * 40, names=("config.json",), ref=None):
    """A repository in the cache."""
    root = cache / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    if ref is not None:
        (root / "refs").mkdir()
        (root / "refs" / ref).write_text(commit)
    return folder


def test_what_is_here_needs_no_hub(tmp_path, answers):
    asked = answers(ConnectionError())
    (tmp_path / "file.pt").touch()
    for path in (tmp_path, tmp_path / "file.pt"):
        assert locate(str(path), "model") == str(path)
    assert not asked.asked


@pytest.mark.parametrize("name", ["./missing", "../missing", "/missing/folder", "a/b/c", "~/model", "C:\\model", "a b"])
def test_what_can_only_be_a_folder_is_not_asked_for(name, answers):
    asked = answers()
    with pytest.raises(OSError, match="no such folder or file, and it is no hub id"):
        locate(name, "model")
    assert not asked.asked


@pytest.mark.parametrize("name", ["owner/name", "gpt2", "bert-base-uncased"])
def test_out_of_reach(name, answers):
    """Said once, and without waiting for every name; names of old repositories have no owner."""
    asked = answers(ConnectionError())
    for _ in range(3):
        with pytest.raises(OSError, match=f"'{name}'.*cannot be reached from here. Did you"):
            locate(name, "model", hint=" Did you?")
    assert asked.asked == [name]


def test_reached_again(answers, monkeypatch):
    answers(ConnectionError())
    with pytest.raises(OSError, match="cannot be reached"):
        locate("owner/name", "model")
    assert not constants.is_offline_mode()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 100.0)
    answers()
    assert locate("owner/name", "model") == "owner/name"


def test_a_hub_that_hangs(answers, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.1)
    answers(lambda: time.sleep(2))
    start = time.monotonic()
    with pytest.raises(OSError, match="cannot be reached"):
        locate("owner/name", "model")
    assert time.monotonic() - start < 1.0


def test_offline_by_choice(answers, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = answers()
    with pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        locate("owner/name", "model")
    assert not asked.asked


def test_the_hub_has_none(answers):
    answers(failure(RepositoryNotFoundError, 404))
    with pytest.raises(OSError, match="shows none of that name"):
        locate("owner/name", "model")


def test_a_hub_that_answers_something_else_is_there(answers):
    answers(failure(HfHubHTTPError, 503))
    assert locate("owner/name", "model") == "owner/name"


def test_the_cache_where_the_hub_is_out_of_reach(cache, answers):
    answers(ConnectionError())
    pinned = snapshot(cache, "owner/pinned", "b" * 40)
    assert locate("owner/pinned", "model", "b" * 40) == str(pinned)
    # Asked for without the commit, whatever is there does.
    assert locate("owner/pinned", "model") == str(pinned)
    with pytest.raises(OSError, match="not in the cache"):
        locate("owner/pinned", "model", "c" * 40)
    newest = snapshot(cache, "owner/newest", ref="main", names=("tokenizer.json",))
    snapshot(cache, "owner/newest", "d" * 40)
    assert locate("owner/newest", "model") == str(newest)
    (cache / "models--owner--empty" / "snapshots" / ("e" * 40)).mkdir(parents=True)
    with pytest.raises(OSError, match="not in the cache"):
        locate("owner/empty", "model")


def test_the_hub_comes_before_the_cache(cache, answers):
    snapshot(cache, "owner/name", ref="main")
    answers()
    assert locate("owner/name", "model") == "owner/name"


def test_a_folder_of_a_name_like_it(tmp_path, answers):
    (tmp_path / "my-model").mkdir()
    with pytest.raises(OSError, match="Did you mean '.*my-model'"):
        locate(str(tmp_path / "my-modle"), "model")


@pytest.mark.parametrize("name", ["typo/typo", "./missing", "typo"])
@pytest.mark.parametrize(
    ("load", "kind"),
    [
        (load_pipeline, OSError),
        (lambda name: load_preview(name, sd()), ValueError),
        (lambda name: load_reward("clip-score", path=name), RewardLoadError),
        (lambda name: load_reward("hps", path=name), RewardLoadError),
        (lambda name: load_reward("image-reward", path=name), RewardLoadError),
        (lambda name: load_reward("vqa-score", path=name), RewardLoadError),
        (lambda name: load_reward("llava-reward", path=name), RewardLoadError),
        (LlavaReward.from_pretrained, CheckpointError),
        (Mask2FormerDetector, RewardLoadError),
    ],
    ids=["pipeline", "preview", "clip-score", "hps", "image-reward", "vqa-score", "llava-reward", "llava", "detector"],
)
def test_everything_that_is_loaded_is_looked_for_first(load, kind, name, answers):
    asked = answers(ConnectionError())
    start = time.monotonic()
    with pytest.raises(kind, match=name):
        load(name)
    assert time.monotonic() - start < 5.0
    assert len(asked.asked) <= 1


@pytest.mark.parametrize(
    ("load", "near"),
    [
        (lambda: load_pipeline("shapez"), "shapes"),
        (lambda: load_preview("shapes-x", sd()), "shapes-xl"),
        (lambda: load_reward("clip-score", path="shapes-heldout"), "shapes-held-out"),
    ],
    ids=["pipeline", "preview", "reward"],
)
def test_names_of_bundled_models_are_suggested(load, near, answers):
    answers(ConnectionError())
    with pytest.raises((OSError, ValueError), match=f"Did you mean '{near}'"):
        load()


def test_models_of_the_cache_are_loaded_without_the_hub(cache, answers, tmp_path):
    answers(ConnectionError())
    save_clip(tmp_path / "clip")
    folder = cache / "models--owner--clip" / "snapshots" / ("a" * 40)
    folder.parent.mkdir(parents=True)
    (tmp_path / "clip").rename(folder)
    sd().save_pretrained(cache / "models--owner--sd" / "snapshots" / ("a" * 40))
    start = time.monotonic()
    assert load_reward("clip-score", path="owner/clip", device="cpu") is not None
    assert load_pipeline("owner/sd").unet is not None
    assert time.monotonic() - start < 10.0


def test_a_reward_is_no_pipeline(tmp_path):
    save_clip(tmp_path)
    with pytest.raises(OSError, match=r"is no pipeline: it holds no model_index\.json"):
        load_pipeline(str(tmp_path))
    with pytest.raises(OSError, match="is no pipeline: it is a file"):
        load_pipeline(str(tmp_path / "config.json"))


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """`datasets`, with an empty cache, which must ask nobody."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "sets"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked = Hub(ConnectionError("asked by datasets"))
    monkeypatch.setattr(HfApi, "hf_hub_download", asked)
    yield datasets
    assert not asked.asked
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    "load", [lambda: hub_rows("owner/name:test"), lambda: read_preferences("hf:owner/name")], ids=["rows", "pairs"]
)
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (ConnectionError(), "https?://.* cannot be reached from here"),
        (failure(RepositoryNotFoundError, 404), "the hub shows none of that name"),
    ],
    ids=["out of reach", "none"],
)
def test_data_sets_that_cannot_be_had(load, answer, problem, sets, answers):
    asked = answers(answer)
    with pytest.raises(
        OSError, match=f"^Found no data set 'owner/name': .*not in the cache of `datasets`, and {problem}"
    ):
        load()
    assert asked.asked == ["owner/name"]


def test_what_can_be_no_data_set_is_not_asked_for(sets, answers):
    asked = answers()
    with pytest.raises(OSError, match="Found no data set 'a b': .*it is no hub id"):
        load_hub_set("a b")
    assert not asked.asked


def test_data_sets_of_the_cache_are_loaded_without_the_hub(sets, answers, tmp_path):
    rows = [{"number": 1}, {"number": 2}]
    sets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    builder = sets.load_dataset_builder(
        "parquet", data_files={"test": str(tmp_path / "rows.parquet")}, cache_dir=str(tmp_path / "made")
    )
    builder.download_and_prepare()
    # As `datasets` caches what it has from the hub.
    folder = tmp_path / "sets" / "owner___name" / "default" / "0.0.0" / ("a" * 40)
    folder.parent.mkdir(parents=True)
    Path(builder.cache_dir).rename(folder)
    (folder / "parquet-test.arrow").rename(folder / "name-test.arrow")
    facts = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**facts, "config_name": "default"}))

    answers(ConnectionError())
    assert load_hub_set("owner/name", split="test").to_list() == rows
    assert hub_rows("owner/name:test")[1] == rows[1]
    with pytest.raises(ValueError, match="train"):
        load_hub_set("owner/name")


def test_data_sets_in_folders_need_no_hub(sets, answers, tmp_path):
    asked = answers(ConnectionError())
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"number": 3}\n')
    assert load_hub_set(str(tmp_path / "rows")).to_list() == [{"number": 3}]
    assert not asked.asked
