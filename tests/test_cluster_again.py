"""``bkray cluster up`` where a head runs already: Ray's own provider of machines one has."""

from pathlib import Path

import pytest

from bkray.cli import app
from bkray.cluster.cluster_file import prepare, read_yaml
from bkray.cluster.provider import running_head
from bkray.errors import ClusterError

ROOT = Path(__file__).parents[1]
pytestmark = [  # Ray leaves the file of its state to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of one machine, of which Ray remembers nothing, in a home of its own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o600)
    text = (ROOT / "deploy/cluster-local.yaml").read_text().replace("[WRITE-YOUR-WORKERS]", "[]")
    text = text.replace("WRITE-YOUR-HEAD", "127.0.0.1").replace("WRITE-YOUR-USER", "nobody")
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def start(path: Path) -> None:
    """Let Ray's provider note down that the head runs."""
    from ray.autoscaler._private.providers import _get_node_provider

    cluster = read_yaml(path)
    asked = prepare(cluster)["provider"]
    provider = _get_node_provider(asked, cluster["cluster_name"], use_cache=False)
    provider.create_node({}, {"ray-node-type": "head"}, 1)


def test_a_yes_alone_ends_nothing_that_runs(cluster: Path) -> None:
    assert running_head(read_yaml(cluster)) is None
    start(cluster)
    assert running_head(read_yaml(cluster)) == "127.0.0.1"
    with pytest.raises(ClusterError, match=r"what runs there ends.*--restart"):
        app(["cluster", "up", str(cluster), "--yes"], standalone_mode=False)
