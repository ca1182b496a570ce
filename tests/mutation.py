"""Plants one-line bugs and lists those no test notices.

    python tests/mutation.py [--number 60] [--seed 0] [FILE ...]

Bugs: a comparison or a Boolean turned round, a condition negated, a keyword argument dropped, two returned values or
arguments exchanged, a number off by one, and `epoch`, `seed`, `rank`, `world_size` replaced by 0 where they are handed
on. Each is planted in a copy of `src`, against which the tests of its file run (fast ones alone). A file is tested by
its mirror in `tests` and by what `MEETINGS` adds where it meets other rooms; of these, those are run that enter the
function the bug is in, the quickest first, up to the first that fails.
"""

import argparse
import ast
import contextlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SRC, TESTS = ROOT / "src" / "unmask", ROOT / "tests"
QUIET = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins imported before the process was forked
TIMEOUT = 900.0  # seconds; a test that hangs has noticed
NO_TESTS = 5  # pytest's code
CPU_LIMIT = 240  # seconds of computing, whatever else the machine does; a test that never ends has noticed too
MEETINGS = {
    "runtime/evaluate.py": ["tests/runtime/test_effect.py"],
    "evaluation/evaluator.py": ["tests/evaluation/test_knn.py", "tests/runtime/test_evaluate.py"],
    "evaluation/last_and_best.py": ["tests/evaluation/test_finetune.py", "tests/evaluation/test_frozen.py"],
    "evaluation/features.py": ["tests/evaluation/test_features.py", "tests/evaluation/test_knn.py"],
    "evaluation/all.py": ["tests/runtime/test_evaluate.py"],
    "inference/images.py": ["tests/inference/test_embed.py"],
    "inference/writing.py": ["tests/inference/test_predict.py"],
    "inference/embed.py": ["tests/inference/test_images.py"],
    "inference/neighbors.py": ["tests/inference/test_images.py"],
    "inference/predict.py": ["tests/inference/test_images.py"],
    "inference/reconstruct.py": ["tests/inference/test_images.py"],
    "methods/base.py": ["tests/methods/test_mae.py"],
    "methods/backbone_module.py": ["tests/methods/test_base.py", "tests/methods/test_supervised.py"],
    "heads/classifier_head.py": ["tests/heads"],
    "heads/batch_norm.py": ["tests/heads"],
    "data/sampler.py": ["tests/data/test_sampler.py", "tests/data/test_datamodule.py"],
    "data/position.py": ["tests/data/test_datamodule.py"],
    "data/worker_signals.py": ["tests/data/test_loader.py"],
    "data/loaded_splits.py": ["tests/data/test_datamodule.py", "tests/data/test_dataset.py"],
    "data/model_input.py": ["tests/data/test_datamodule.py", "tests/data/test_precomputed_crops.py"],
    "callbacks/report_page.py": ["tests/callbacks/test_run_report.py"],
    "interchange/classifier.py": ["tests/interchange/test_classifiers.py"],
    "interchange/load_weights.py": ["tests/runtime/test_initialize.py"],
    "callbacks/exact_resume.py": ["tests/test_resume.py"],
    "callbacks/last_checkpoint.py": ["tests/callbacks/test_stopping.py"],
    "callbacks/restricted_state.py": ["tests/runtime/test_run_record.py"],
    "runtime/pretrain.py": ["tests/runtime/test_resume.py"],
}
FILES = [
    *("evaluation/knn.py", "evaluation/linear.py", "evaluation/logistic.py", "evaluation/clustering.py"),
    *("evaluation/anomaly.py", "evaluation/dense.py", "evaluation/fewshot.py", "evaluation/few_labels.py"),
    *("evaluation/features.py", "evaluation/last_and_best.py", "evaluation/finetune.py", "evaluation/frozen.py"),
    *("evaluation/score.py", "evaluation/metrics.py", "evaluation/report.py", "evaluation/kmeans.py"),
    *("inference/predict.py", "inference/embed.py", "inference/neighbors.py", "inference/reconstruct.py"),
    *("inference/photo.py", "methods/backbone_module.py", "callbacks/exact_resume.py", "callbacks/last_checkpoint.py"),
    *("callbacks/restricted_state.py",),
    *("inference/images.py", "runtime/evaluate.py", "runtime/inference.py", "data/sampler.py", "data/splits.py"),
    *("masking/random.py", "masking/bernoulli.py", "masking/stages.py", "optim/schedules.py", "optim/configure.py"),
    *("optim/accumulation.py", "optim/param_groups.py", "methods/base.py", "methods/split_means.py"),
    *("methods/supervised.py", "methods/frozen.py", "callbacks/step_seeding.py", "callbacks/provenance.py"),
    *("data/loader.py", "data/worker_signals.py", "data/position.py", "data/bad_images.py", "small_sets.py"),
    *("data/loaded_splits.py", "data/model_input.py"),
    *("callbacks/process_watch.py", "callbacks/report_page.py", "callbacks/run_report.py"),
    *("callbacks/online_probe.py", "callbacks/settings_card.py", "runtime/follow_data.py", "runtime/follow_steps.py"),
    *("runtime/explain.py", "runtime/mistakes.py", "runtime/resume.py", "runtime/pretrain.py"),
    *("runtime/started_processes.py", "inference/contact_sheet.py", "backbones/timm_hiera.py", "heads/stage_fusion.py"),
    *("evaluation/class_order.py", "interchange/classifier.py", "interchange/load_weights.py"),
]
TESTED_SLOWLY = ["data/loader.py", "data/worker_signals.py"]  # by real processes alone: their slow tests run too
HANDED_ON = {"epoch", "seed", "rank", "world_size", "current_epoch", "global_rank"}
TURNED = [(ast.Lt, ast.GtE), (ast.Gt, ast.LtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
OTHER = {operator: other for pair in TURNED for operator, other in (pair, pair[::-1])}
BORDER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}


class Mutant(NamedTuple):
    """One planted bug."""

    file: str  # below src/unmask
    line: int
    function: range  # lines of the innermost one it is in; of the whole file outside all
    before: str
    after: str
    source: str  # of the whole file


def mutants_of(file: str) -> list[Mutant]:
    """Plants every bug there is in a file, one at a time."""
    source = (SRC / file).read_text()
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    found = []
    for node, replacement in _replacements(tree):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        content = source.encode()
        before, after = content[begin:end].decode(), ast.unparse(replacement)
        if isinstance(node, ast.expr) and not isinstance(node, ast.Constant):
            after = f"({after})"
        changed = (content[:begin] + after.encode() + content[end:]).decode()
        if changed != source:
            found.append(Mutant(file, node.lineno, _around(tree, node), " ".join(before.split()), after, changed))
    return found


def _around(tree: ast.Module, node: ast.expr) -> range:
    """The lines of the innermost function with a name that holds a node, its decorators among them."""
    spans = [
        range(min([part.lineno, *(decorator.lineno for decorator in part.decorator_list)]), part.end_lineno + 1)
        for part in ast.walk(tree)
        if isinstance(part, ast.FunctionDef)
    ]
    return min((span for span in spans if node.lineno in span), key=len, default=range(0))


def _replacements(tree: ast.Module) -> Iterator[tuple[ast.expr, ast.expr]]:
    for node in _code(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            for table in (OTHER, BORDER):
                if type(node.ops[0]) in table:
                    yield node, ast.Compare(node.left, [table[type(node.ops[0])]()], node.comparators)
        if isinstance(node, ast.BoolOp):
            yield node, ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        if isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Compare):
            yield node.test, ast.UnaryOp(ast.Not(), node.test)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1:
            first, second, *others = node.value.elts
            yield node.value, ast.Tuple([second, first, *others], ast.Load())
        if isinstance(node, ast.Call):
            yield from _of_call(node)
        if isinstance(node, ast.BinOp | ast.Slice):
            numbers = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.Constant)]
            yield from ((part, ast.Constant(part.value + 1)) for part in numbers if type(part.value) is int)


def _of_call(node: ast.Call) -> Iterator[tuple[ast.expr, ast.expr]]:
    for dropped in node.keywords:
        if dropped.arg == "strict":  # of zip: an assertion for readers
            continue
        kept = [keyword for keyword in node.keywords if keyword is not dropped]
        yield node, ast.Call(node.func, node.args, kept)
        if dropped.arg in HANDED_ON and not isinstance(dropped.value, ast.Constant):
            yield dropped.value, ast.Constant(0)
    is_commutative = isinstance(node.func, ast.Name) and node.func.id in ("min", "max")
    if (
        len(node.args) > 1
        and not is_commutative
        and not any(isinstance(argument, ast.Starred) for argument in node.args)
    ):
        first, second, *others = node.args
        yield node, ast.Call(node.func, [second, first, *others], node.keywords)
    for argument in node.args:
        name = argument.attr if isinstance(argument, ast.Attribute) else getattr(argument, "id", "")
        if name in HANDED_ON:
            yield argument, ast.Constant(0)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Walks what runs: no messages of errors and logs, no annotations, no assertions for readers."""
    is_log = (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "_log"
    )
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.arg | ast.AnnAssign) or is_log:
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("returns", "annotation", "decorator_list", "bases"):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST):
                    yield from _code(part)


def tests_of(file: str) -> list[str]:
    """Finds what tests a file: its mirror and where it meets other rooms."""
    mirror = Path("tests") / Path(file).parent / f"test_{Path(file).name}"
    own = [str(mirror)] if (ROOT / mirror).is_file() else []
    return list(dict.fromkeys([*own, *MEETINGS.get(file, [])])) or [str(mirror.parent)]


class Reached:
    """A plugin of pytest: which tests enter which functions of a file, and how long each takes.

    What a fixture does, which tests of a module may share, counts for all tests of that module.
    """

    def __init__(self, file: str) -> None:
        self.file = f"/src/unmask/{file}"
        self.by_test: dict[str, set[int]] = {}  # first lines of functions
        self.by_module: dict[str, set[int]] = {}
        self.seconds: dict[str, float] = {}
        self._entered: set[int] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._entered = self.by_module.setdefault(nodeid.partition("::")[0], set())
        sys.settrace(self._trace)

    def pytest_runtest_call(self, item: Any) -> None:
        self._entered = self.by_test.setdefault(item.nodeid, set())
        sys.settrace(self._trace)

    def pytest_runtest_teardown(self, item: Any) -> None:
        self._entered = self.by_module[item.nodeid.partition("::")[0]]

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, event: str, argument: Any) -> None:
        if frame.f_code.co_filename.endswith(self.file):
            self._entered.add(frame.f_code.co_firstlineno)

    def tests_entering(self, function: range) -> dict[str, float]:
        """The tests that enter a function, with their seconds; all tests where none is known to."""
        entering = {
            test: self.seconds.get(test, 0.0)
            for test, entered in self.by_test.items()
            if any(line in function for line in entered | self.by_module[test.partition("::")[0]])
        }
        return entering or dict.fromkeys(self.by_test, 0.0)


class Chosen:
    """A plugin of pytest: runs some tests alone, the quickest first within their module, quick modules first."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid in self.seconds]
        of_module: dict[str, float] = {}
        for test, seconds in self.seconds.items():
            module = test.partition("::")[0]
            of_module[module] = of_module.get(module, 0.0) + seconds
        items.sort(key=lambda item: (of_module[item.nodeid.partition("::")[0]], self.seconds[item.nodeid]))


def _run_tests(copy: str, tests: list[str], marks: str, plugin: Any, answers: Any) -> None:
    """Runs in a process of its own, which has no module of the package yet; answers with pytest's code."""
    import pytest  # noqa: PLC0415

    os.chdir(ROOT)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
    os.environ["PYTHONPATH"] = copy
    sys.path.insert(0, copy)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *QUIET, "-m", marks, *tests], plugins=[plugin])
    answers.send((int(code), plugin))
    os._exit(0)


def run_tests(file: str, source: str | None, tests: list[str], plugin: Any) -> tuple[int, Any]:
    """Runs tests of a file against the package with this source of it; without one, as it is.

    Returns:
        pytest's code, 0 where all have passed, and the plugin with what it has learned.
    """
    marks = "not bolts and not nightly" if file in TESTED_SLOWLY else "not slow and not bolts and not nightly"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SRC, Path(folder) / "src" / "unmask")
        for name in ("conf", "docs", "run.py", "eval.py", "pyproject.toml"):
            (Path(folder) / name).symlink_to(ROOT / name)
        if source is not None:
            (Path(folder) / "src" / "unmask" / file).write_text(source)
        context = multiprocessing.get_context("fork")
        answered, answers = context.Pipe(duplex=False)
        arguments = (str(Path(folder) / "src"), tests, marks, plugin, answers)
        process = context.Process(target=_run_tests, args=arguments)
        process.start()
        answers.close()
        try:
            return answered.recv() if answered.poll(TIMEOUT) else (1, None)
        except EOFError:  # it died, which is noticed too
            return 1, None
        finally:
            process.kill()
            process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("files", nargs="*", default=FILES)
    arguments = parser.parse_args()
    import lightning  # noqa: F401, PLC0415  (once, not in each process)
    import timm  # noqa: F401, PLC0415
    import torchmetrics  # noqa: F401, PLC0415

    planted = {file: mutants_of(file) for file in arguments.files}
    draw = random.Random(arguments.seed)
    for mutants in planted.values():
        draw.shuffle(mutants)
    longest = max(map(len, planted.values()))
    by_turns = [mutants[turn] for turn in range(longest) for mutants in planted.values() if turn < len(mutants)]
    chosen, survivors, reached = by_turns[: arguments.number], [], {}
    print(f"{len(chosen)} of {len(by_turns)} bugs in {len(planted)} files")
    for number, mutant in sorted(enumerate(chosen, start=1), key=lambda entry: entry[1].file):
        tests = tests_of(mutant.file)
        if mutant.file not in reached:
            code, reached[mutant.file] = run_tests(mutant.file, None, tests, Reached(mutant.file))
            if code:
                sys.exit(f"the tests of {mutant.file} fail without a bug: {' '.join(tests)}")
        entering = reached[mutant.file].tests_entering(mutant.function)
        code, _ = run_tests(mutant.file, mutant.source, tests, Chosen(entering))
        if code == NO_TESTS:
            sys.exit(f"no test of {mutant.file} was run")
        noticed = code != 0
        survivors += [] if noticed else [mutant]
        text = f"{mutant.file}:{mutant.line}: {mutant.before[:90]} -> {mutant.after[:90]}"
        print(f"{number:>4} {'noticed ' if noticed else 'SURVIVED'} {text}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed ({1 - len(survivors) / len(chosen):.0%})")


if __name__ == "__main__":
    main()
