"""The commands: `run.py` and `eval.py`, installed as `unmask-run` and `unmask-eval`.

Kept light: shell completion imports this module at every press of the tab key.
"""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from unmask.callbacks.first_process import end_with_first_process, forget_first_process
from unmask.missing_packages import explain_missing_packages, name_missing_package
from unmask.runtime.log_streams import tell
from unmask.runtime.own_commands import interpreter
from unmask.runtime.typed import typed

EXIT_FIXABLE = 2  # by the user
EXIT_MACHINE = 4  # as in `callbacks.stopping`, which imports torch
_RUN_DIR = "hydra.run.dir="
_PLACES = ("hydra.run.dir", "hydra.sweep.dir", "paths.output_root")  # where folders are made
_QUICKSTART = "experiment=quickstart"
_WHAT_TO_RUN = ("method=", "model=", "data=", "experiment=")
_HELP = ("--help", "-h", "--version", "--hydra-help")
_COMPLETION = ("--shell-completion", "-sc")
_ABOUT = (*_HELP, *_COMPLETION)
_SHOWS_ALONE = (*_ABOUT, "--cfg", "-c", "--info", "-i")
_EXPLAIN = "explain="
_TRACEBACK_SWITCH = "UNMASK_TRACEBACK"  # =1 shows where an error was raised


@explain_missing_packages()
def run() -> None:
    """Pre-trains: `python run.py method=mae model=vit_tiny data=cifar10 data.root=DIR`."""
    from unmask.runtime.config import with_probes

    sys.argv[1:] = with_probes(settings_before_flags(sys.argv[1:]))
    if not any(argument.startswith(_WHAT_TO_RUN) or argument in _ABOUT for argument in sys.argv[1:]):
        sys.argv.insert(1, _QUICKSTART)
    _command("run", _pretrain)


@explain_missing_packages()
def evaluate() -> None:
    """Evaluates: `python eval.py eval=knn ckpt_path=FILE`."""
    from unmask.runtime.config import with_own_data

    sys.argv[1:] = with_own_data(settings_before_flags(sys.argv[1:]))
    _command("eval", _evaluate_once)


@explain_missing_packages()
def export() -> None:
    """Exports: `python -m unmask.export ckpt_path=FILE format=huggingface`."""
    from unmask.runtime.export import export as export_checkpoint

    _plain_command("export", export_checkpoint)


@explain_missing_packages()
def pack() -> None:
    """Packs: `python -m unmask.pack data=folder data.root=DIR out=DIR2`."""
    from unmask.runtime.pack import pack as pack_source

    _plain_command("pack", pack_source)


@explain_missing_packages()
def inspect() -> None:
    """Looks at a data set: `python -m unmask.inspect data=folder data.root=DIR`."""
    from unmask.runtime.inspect import inspect as inspect_data

    _plain_command("inspect", inspect_data)


@explain_missing_packages()
def demo() -> None:
    """Serves a page: `python -m unmask.demo ckpt_path=FILE`."""
    from unmask.runtime.demo import demo as serve_page

    _plain_command("demo", serve_page)


@explain_missing_packages()
def report() -> None:
    """Writes a page: `python -m unmask.report RUN [RUN ...]`."""
    from unmask.runtime.report import report as write_report

    _command_on_runs("python -m unmask.report RUN [RUN ...] [out=FILE]", write_report)


@explain_missing_packages()
def reference() -> None:
    """Keeps the curves of good runs: `python -m unmask.reference RUN RUN RUN out=FILE`."""
    from unmask.runtime.reference import make_reference

    _command_on_runs("python -m unmask.reference RUN [RUN ...] out=FILE", make_reference)


def _command_on_runs(usage: str, act: Callable[[list[str]], object]) -> None:
    """Hands the words of the command line on; none, or a question for help, is answered with the usage."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if len(sys.argv) == 1 or sys.argv[1] in _ABOUT:
        sys.exit(f"usage: {usage}")
    try:
        act(sys.argv[1:])
    except Exception as error:
        sys.exit(_explain_or_raise(error))


@explain_missing_packages()
def replay() -> None:
    """Computes a step again: `python -m unmask.replay FILE`."""
    from unmask.runtime.console import quiet_libraries
    from unmask.runtime.replay import replay as replay_step

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    quiet_libraries()
    if len(sys.argv) != 2 or sys.argv[1] in _ABOUT:
        sys.exit("usage: python -m unmask.replay runs/.../nonfinite/step_00000012.ckpt")
    try:
        replay_step(sys.argv[1])
    except Exception as error:
        sys.exit(_explain_or_raise(error))


@explain_missing_packages()
def job() -> None:
    """Runs a job of a sweep as it was frozen: `python -m unmask.job runs/sweeps/TIME/0`."""
    from unmask.runtime.job_cores import use_cores

    end_with_first_process(exit_code=EXIT_MACHINE)
    use_cores()  # before anything counts them
    from unmask.runtime.shared_cores import choose_waiting

    choose_waiting()  # before torch is imported
    from unmask.runtime.job_process import stop_with_sweep, thaw
    from unmask.runtime.memory import keep_freed_memory
    from unmask.runtime.resolvers import register_resolvers

    if len(sys.argv) < 2 or sys.argv[1] in _ABOUT:
        sys.exit("usage: python -m unmask.job runs/sweeps/TIME/NUMBER [resume=auto]")
    stop_with_sweep()
    keep_freed_memory()
    register_resolvers()
    _require_safe_loading()
    _require_own_files([f"{_RUN_DIR}{sys.argv[1]}"])
    try:
        config = thaw(Path(sys.argv[1]), sys.argv[2:])
    except Exception as error:
        sys.exit(_explain_or_raise(error))
    task = _evaluate if HydraConfig.get().job.config_name == "eval" else _pretrain
    _quiet(task)(config)


def settings_before_flags(arguments: Sequence[str]) -> list[str]:
    """Moves settings in front of flags, behind which Hydra takes none: `seed=1 --cfg job method=mae`.

    A flag takes the word behind it where it needs one; `--info` takes it where it is one of its choices. What looks
    like a flag and is none, `--lr=0.1`, ends the program with a sentence.
    """
    flags_known = get_args_parser()._option_string_actions
    settings: list[str] = []
    flags: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        flag = flags_known.get(word)
        if flag is None and not word.startswith("-"):
            settings.append(word)
            continue
        if flag is None and word.startswith("--") and word.partition("=")[0] not in flags_known:
            _refuse_option(word)
        flags.append(word)
        is_optional = flag is not None and flag.nargs == "?"
        if flag is not None and words and (flag.nargs is None or (is_optional and words[0] in (flag.choices or ()))):
            flags.append(words.pop(0))
    return [*settings, *flags]


def _refuse_option(word: str) -> NoReturn:
    from unmask.runtime.mistakes import without_dashes

    sys.stderr.write(f"error: {without_dashes(word)}\n")
    sys.exit(EXIT_FIXABLE)


def _pretrain(config: DictConfig) -> Any:
    from unmask.runtime.pretrain import pretrain

    return pretrain(config)


def _evaluate(config: DictConfig) -> Any:
    from unmask.runtime.evaluate import evaluate
    from unmask.runtime.job_outcome import is_job_of_sweep
    from unmask.runtime.run_folder import locked, require_no_report

    run_dir = Path(config.paths.run_dir)
    with locked(run_dir):
        if not is_job_of_sweep():  # of one that is continued, jobs are made again
            require_no_report(run_dir)  # of one that was under way when this was started
        return evaluate(config)


def _evaluate_once(config: DictConfig) -> Any:
    if config.resume != "never":
        raise ValueError(
            f"resume={config.resume} continues a sweep of evaluations (-m); one by itself is made again, leave it out"
        )
    return _evaluate(config)


def _command(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    if any(argument.startswith(_EXPLAIN) for argument in sys.argv[1:]):
        _print_explanation(config_name)
        return
    from unmask.runtime.config import config_directory, configuration_names
    from unmask.runtime.constructor_defaults import show_constructor_defaults
    from unmask.runtime.memory import keep_freed_memory
    from unmask.runtime.resolvers import register_resolvers
    from unmask.runtime.shared_cores import choose_waiting

    if not any(argument in _SHOWS_ALONE for argument in sys.argv[1:]):
        end_with_first_process(exit_code=EXIT_MACHINE)
        choose_waiting()
    keep_freed_memory()
    register_resolvers(is_completing=any(argument in _COMPLETION for argument in sys.argv[1:]))
    if not any(argument in _HELP for argument in sys.argv[1:]):
        show_constructor_defaults()
    if not any(argument in _SHOWS_ALONE for argument in sys.argv[1:]):  # it imports torch
        _require_safe_loading()
        _require_own_files(sys.argv[1:], is_evaluation=config_name == "eval")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints errors itself, where no one can help
    main = hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=config_name)(_quiet(task))
    try:
        main()
    except Exception as error:  # SystemExit, by which `--help` ends, asks for no names of errors
        sys.exit(_explain_or_raise(error, lambda: configuration_names(config_name, sys.argv[1:])))


def _print_explanation(config_name: str) -> None:
    """Prints where the settings named by `explain=KEY` come from, in place of running anything."""
    from unmask.runtime.config import configuration_names
    from unmask.runtime.explain import explain

    keys = [argument.removeprefix(_EXPLAIN) for argument in sys.argv[1:] if argument.startswith(_EXPLAIN)]
    settings = [word for word in sys.argv[1:] if not word.startswith((_EXPLAIN, "-"))]
    try:
        for key in keys:
            sys.stdout.writelines(f"{line}\n" for line in explain(config_name, key, settings))
    except Exception as error:
        sys.exit(_explain_or_raise(error, lambda: configuration_names(config_name, settings)))


def _plain_command(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    """Runs a task that needs no folder of its own for the run; `--help` prints its configuration file."""
    from unmask.runtime.config import compose_config, config_directory, configuration_names
    from unmask.runtime.console import quiet_libraries
    from unmask.runtime.memory import keep_freed_memory

    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    quiet_libraries()
    overrides = sys.argv[1:]
    if any(override in _ABOUT for override in overrides):
        sys.stdout.write((config_directory() / f"{config_name}.yaml").read_text(encoding="utf-8"))
        return
    _require_safe_loading()
    from unmask.data.loader import WorkerFailed

    try:
        _require_no_settings_of_hydra(overrides)
        task(compose_config(config_name, overrides))
    except WorkerFailed as failed:
        _report_failure(failed, None)
        sys.exit(EXIT_MACHINE)
    except Exception as error:
        sys.exit(_explain_or_raise(error, lambda: configuration_names(config_name, sys.argv[1:])))


def _require_no_settings_of_hydra(overrides: Sequence[str]) -> None:
    """Refuses what only run.py and eval.py, which Hydra starts, take."""
    for override in overrides:
        if override.lstrip("+~").startswith(("hydra.", "hydra/")):
            name = override.lstrip("+~").partition("=")[0]
            raise ValueError(
                f"{name} is a setting of run.py and eval.py and would change nothing here; leave it out (`--help` "
                "lists the settings of this command, the place it writes to among them)"
            )


def _require_safe_loading() -> None:
    from unmask.interchange.files import require_safe_loading

    try:
        require_safe_loading()
    except ValueError as error:
        sys.exit(_explain(error))


def _require_own_files(overrides: Sequence[str], *, is_evaluation: bool = False) -> None:
    """Looks at the folder of a run before Hydra writes to it."""
    from unmask.runtime.run_folder import require_own_files, require_unmeasured

    for override in overrides:
        key, _, value = override.partition("=")
        folder = Path(value.strip("'\""))
        try:
            if key in _PLACES:
                _require_expanded(key, folder)
            if key == _PLACES[0]:
                require_own_files(folder)
                if is_evaluation:
                    require_unmeasured(folder, command=[*_start(), *_without_folder(sys.argv[1:])])
        except ValueError as error:
            sys.exit(_explain(error))


def _require_expanded(key: str, folder: Path) -> None:
    """Refuses `~/a`, of which Hydra would make a folder called ~."""
    if folder.expanduser() != folder:
        raise ValueError(f"{key}={folder} is not read as by a shell; write {typed(key, folder.expanduser())}")


def _quiet(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Prepares the process for the task and, if the user's settings stop it, leaves its folder as it was.

    Of a sweep, each job is such a process, and its folder stays.
    """

    def prepared(config: DictConfig) -> Any:
        from unmask.callbacks.stopping import RunStopped
        from unmask.data.loader import WorkerFailed
        from unmask.runtime.console import quiet_libraries
        from unmask.runtime.job_outcome import report_to_sweep
        from unmask.runtime.mistakes import one_sentence
        from unmask.runtime.run_folder import FolderBefore
        from unmask.runtime.started_processes import tell_machine

        if HydraConfig.get().mode == RunMode.MULTIRUN:
            from unmask.runtime.sweep import run_job

            return run_job()
        tell_machine(num_nodes=config.trainer.num_nodes)
        quiet_libraries()
        run_dir = Path(config.paths.run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)  # Hydra makes its own folder alone, which it is by default
        try:
            value = task(config)
            report_to_sweep(value=value)
            return value
        except _user_errors() as error:
            report_to_sweep(sentence=one_sentence(error, (), ()))
            FolderBefore.bring_back(run_dir)
            if os.environ.get(_TRACEBACK_SWITCH) == "1":
                raise
            # Leaving by SystemExit keeps Hydra from printing a preface of its own.
            sys.exit(_explain(error))
        except RunStopped as stopped:
            report_to_sweep(sentence=str(stopped))
            sys.exit(_explain_stop(stopped, run_dir))
        except WorkerFailed as failed:
            report_to_sweep(sentence=str(failed))
            _report_failure(failed, run_dir if "resume" in config else None)
            sys.exit(EXIT_MACHINE)
        except Exception as error:
            _exit_by_machine(error, run_dir if "resume" in config else None)
            raise
        except SystemExit as left:
            if left.code:
                report_to_sweep(sentence=f"left by sys.exit({left.code!r})")
            raise
        finally:
            forget_first_process()
            _finish_wandb()

    return prepared


def _user_errors() -> tuple[type[BaseException], ...]:
    """What settings, files and data can cause; anything else is a defect and keeps its traceback."""
    from hydra.errors import HydraException
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from omegaconf.errors import OmegaConfBaseException

    from unmask.runtime.mistakes import WRONG_PLACES

    errors = [HydraException, OmegaConfBaseException, MisconfigurationException, ValueError, *WRONG_PLACES]
    if "wandb" in sys.modules:  # else it has raised nothing
        errors.append(sys.modules["wandb"].Error)
    return tuple(errors)


def _explain_or_raise(
    error: Exception, names: Callable[[], tuple[Sequence[str], Sequence[str]]] = lambda: ((), ())
) -> int:
    """Writes one sentence for what the user or the machine has caused, and returns the exit code; else raises.

    Args:
        error: As caught.
        names: Known keys and groups; only asked where the user is to blame.
    """
    if os.environ.get(_TRACEBACK_SWITCH) == "1":
        raise error
    if isinstance(error, _user_errors()):
        return _explain(error, *names())
    from unmask.runtime.mistakes import machine_failure

    failure = machine_failure(error)
    if failure is None:
        raise error
    _report_failure(failure, None)
    return EXIT_MACHINE


def _exit_by_machine(error: Exception, run_dir: Path | None) -> None:
    """Ends a run with a sentence where the system could not write or read; does nothing about other errors."""
    from unmask.runtime.job_outcome import report_to_sweep
    from unmask.runtime.mistakes import machine_failure, one_sentence

    failure = machine_failure(error)
    report_to_sweep(sentence=failure or f"{type(error).__name__}: {one_sentence(error, (), ())}")
    if failure is not None and os.environ.get(_TRACEBACK_SWITCH) != "1":
        _report_failure(failure, run_dir)
        sys.exit(EXIT_MACHINE)


def _explain(error: BaseException, known_keys: Sequence[str] = (), groups: Sequence[str] = ()) -> int:
    """Writes the sentence; the names are only needed for a configuration that did not compose."""
    from unmask.runtime.mistakes import one_sentence

    sentence = name_missing_package(error) or one_sentence(error, known_keys, groups)
    tell(f"error: {sentence}\n({_TRACEBACK_SWITCH}=1 shows where)\n")
    return EXIT_FIXABLE


def _explain_stop(stopped: Any, run_dir: Path) -> int:
    """Says why a run ended early and, where it saved, how to go on.

    Processes but the first say nothing and report success: a failure would make Lightning kill the first one, whose
    exit code speaks for the run.
    """
    from unmask.runtime.job_outcome import is_job_of_sweep
    from unmask.runtime.started_processes import is_first_process

    if not is_first_process():
        return 0
    if is_job_of_sweep():  # which says how the whole goes on
        tell(f"{stopped}\n")
    elif stopped.state == "preempted":
        tell(f"{stopped}; go on with:\n  {_command_to_go_on(run_dir)}\n")
    else:
        _report_failure(stopped, run_dir if stopped.can_go_on else None)
    return int(stopped.exit_code)


def _report_failure(error: BaseException | str, run_dir: Path | None) -> None:
    """Says what failed that is neither a setting nor a defect and, where the run has saved, how to go on."""
    tell(f"error: {error}\n")
    if run_dir is not None and (run_dir / "checkpoints/last.ckpt").exists():
        tell(f"go on from the last checkpoint with:\n  {_command_to_go_on(run_dir)}\n")


def _command_to_go_on(run_dir: Path) -> str:
    replaced = ("resume=", "ckpt_path=", "hydra.run.dir=")
    task = HydraConfig.get().overrides.task
    kept = [override for override in task if not override.lstrip("+").startswith(replaced)]
    return shlex.join([*_start(), *kept, typed("hydra.run.dir", run_dir), "resume=auto"])


def _start() -> list[str]:
    """The words in front of the settings."""
    program = sys.argv[0]
    return [*_launcher(), program] if program.endswith(".py") else [program]


def _without_folder(settings: Sequence[str]) -> list[str]:
    """Settings as the user has typed them, but the folder of the run."""
    kept = [setting for setting in settings if not setting.startswith(_RUN_DIR)]
    return [setting.removeprefix("++own_") if setting.startswith("++own_data.") else setting for setting in kept]


def _launcher() -> list[str]:
    """What starts the program again as it was started; on several machines, with what torchrun was told of each."""
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if not TorchElasticEnvironment.detect():
        return [interpreter()]
    machines = os.environ["GROUP_WORLD_SIZE"]
    several = [] if machines == "1" else [f"--nnodes={machines}", "..."]
    return ["torchrun", *several, f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"]


def _finish_wandb() -> None:
    """Ends the W&B run with the command, also where several commands share a process."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()
