"""The `adarank` command: what it lists, how fast, and that `run` and `probe` get their words untouched."""

import subprocess
import sys
from types import ModuleType

import pytest

import adarank.harness.app
from adarank.cli import main
from adarank.errors import RunFailed, SettingError

COMMANDS = ("run", "settings", "status", "frame", "probe", "sync", "inspect", "merge", "export", "compress", "suggest")


def command(*words, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "adarank", *words], capture_output=True, text=True, cwd=cwd, timeout=300, **options
    )


def test_the_help_lists_every_command_with_a_sentence_and_imports_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from adarank.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n"
        "    print(end.code, [m for m in ('torch', 'hydra', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("    ")]
    listed = {line[0]: line[1] for line in lines if line[0] in COMMANDS}
    assert listed.keys() == set(COMMANDS)
    assert all(len(sentence.split()) > 3 for sentence in listed.values())


def test_run_is_the_hydra_application_from_any_directory(tmp_path):
    done = command("run", "--cfg", "job", "rank=5", "method=lora", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rank: 5" in done.stdout.splitlines()
    assert list(tmp_path.iterdir()) == []
    done = command("run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "train.max_grad_norm = 1.0" in done.stdout
    assert "method=adadora  adalora" in done.stdout
    done = command("run", "rank=none", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["-m", "seed=0,1", "--config-dir", "here"], ["--help"], [], ["status"]])
def test_words_after_run_are_not_read_here(words, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["adarank"])
    monkeypatch.setattr(adarank.harness.app, "main", lambda: seen.append(sys.argv[1:]) or 7)
    assert main(["run", *words]) == 7
    assert seen == [words]


def test_words_after_probe_and_settings_go_to_their_modules(monkeypatch, capsys):
    probe, described = ModuleType("adarank.probe.cli"), ModuleType("adarank.harness.config.help")
    probe.main = lambda words: {"RUN": 1, "--help": 0}[words[0]]
    described.describe = lambda: "rank: 8  mean rank"
    monkeypatch.setitem(sys.modules, "adarank.probe.cli", probe)
    monkeypatch.setitem(sys.modules, "adarank.harness.config.help", described)
    assert main(["probe", "RUN", "--rows", "4"]) == 1
    assert main(["probe", "--help"]) == 0
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == "rank: 8  mean rank\n"


@pytest.mark.parametrize(
    ("error", "status"), [(SettingError("no."), 2), (RunFailed("no."), 1), (KeyboardInterrupt(), 130)]
)
def test_exit_statuses(monkeypatch, tmp_path, error, status):
    def fails(out):
        raise error

    monkeypatch.setattr("adarank.runs.status.watch", fails)
    assert main(["status", str(tmp_path)]) == status


def test_an_unknown_command_is_status_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["statsu"])
    assert end.value.code == 2
    assert "invalid choice: 'statsu'" in capsys.readouterr().err
