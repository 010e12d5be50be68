"""Models from a hub: a small server on this machine that speaks its protocol, and fresh processes as its clients."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import hub_server
import tiny

CLIENT = """
import json, sys
from plft.checkpoints import resolve
from plft.errors import PlftError
for question in json.loads(sys.argv[1]):
    try:
        checkpoint = resolve(**question)
        checkpoint.load_backbone()
        answer = {"revision": checkpoint.revision, "sha256": checkpoint.sha256, "family": checkpoint.family.name}
    except PlftError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
"""


@dataclass
class Hub:
    """A served folder of repositories, and what clients asked of it."""

    root: Path
    home: Path
    address: str = ""
    served: list[str] = field(default_factory=list)

    def ask(self, *questions, **environment):
        """Resolve names in a fresh process; returns one answer each."""
        variables = {**os.environ, "HF_HOME": str(self.home), "HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0"}
        variables.update(environment)
        command = [sys.executable, "-c", CLIENT, json.dumps(questions)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def commit(self, name):
        return hub_server.commit_of(self.root / name)


def own_code(folder):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoModel": "own.OwnModel"}}))
    (folder / "own.py").write_text("from transformers import EsmModel\nclass OwnModel(EsmModel):\n    pass\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for name in ("lab/tiny", "lab/pickled", "lab/own-code"):
        tiny.save(tiny.checkpoint("esm2"), root / name)
    (root / "lab/tiny/pytorch_model.bin").write_bytes(b"a pickle next to the safetensors")
    (root / "lab/pickled/model.safetensors").rename(root / "lab/pickled/pytorch_model.bin")
    own_code(root / "lab/own-code")
    return Hub(root, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def online(hub):
    """All answers of one client that reaches the server: starting a process for each would take long."""
    commit = hub.commit("lab/own-code")
    questions = {
        "plain": {"name": "lab/tiny"},
        "tag": {"name": "lab/tiny@v1"},
        "revision": {"name": "lab/tiny", "revision": "refs/pr/1"},
        "commit": {"name": f"lab/tiny@{hub.commit('lab/tiny')}"},
        "no repository": {"name": "lab/nothing"},
        "no revision": {"name": "lab/tiny@v9"},
        "gated": {"name": "lab/gated-model"},
        "pickle": {"name": "lab/pickled"},
        "bad name": {"name": "lab/a b"},
        "code": {"name": "lab/own-code"},
        "code without pin": {"name": "lab/own-code", "trust_remote_code": True},
        "code with pin": {"name": f"lab/own-code@{commit}", "trust_remote_code": True},
    }
    with hub_server.serving(hub.root) as (hub.address, hub.served):
        return dict(zip(questions, hub.ask(*questions.values()), strict=True))


@pytest.mark.parametrize("how", ["plain", "tag", "revision", "commit"])
def test_a_hub_id_gives_the_model_and_the_commit_it_was_at(hub, online, how):
    assert online[how]["revision"] == hub.commit("lab/tiny")
    assert online[how]["family"] == "esm2"


def test_no_pickle_is_ever_fetched_and_nothing_twice(hub, online):
    assert [name for name in hub.served if name.endswith(".bin")] == []
    assert len(hub.served) == len(set(hub.served))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no repository", "There is no model 'lab/nothing'"),
        ("no revision", "'lab/tiny' has no revision 'v9'"),
        ("gated", "accepted its terms"),
        ("pickle", "safetensors only"),
        ("bad name", "neither a folder nor a hub id"),
        ("code", "Read it, and if you trust it pass --trust-remote-code"),
        ("code without pin", "pinned revision @"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(online, how, message):
    assert message in online[how]["error"]
    assert "\n" not in online[how]["error"]


def test_code_runs_with_consent_and_a_pinned_revision(hub, online):
    assert online["code with pin"]["revision"] == hub.commit("lab/own-code")


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["offline mode", "no network"])
def test_without_network_the_cache_serves_what_it_has(hub, online, environment):
    cached, other = hub.ask({"name": "lab/tiny"}, {"name": "lab/other"}, **environment)
    assert cached == online["plain"]
    assert "'lab/other' is not in the local cache" in other["error"]
    expected = "HF_HUB_OFFLINE is set" if environment else "cannot be reached"
    assert expected in other["error"]
