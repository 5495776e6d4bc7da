"""The command line of a recipe: Hydra composes, a schema checks, and the recipe runs only if all is well.

``python recipes/peach.py hierarchy.depth=2`` runs once; with ``-m`` and ``hierarchy.depth=1,2,3`` it sweeps. Unknown
keys and bad values, in any combination of a sweep, end the program with one line on stderr and exit code 2 before
Hydra makes a folder; unknown keys even before torch is imported, see :mod:`peach_trl.utils.startup`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra._internal.utils import get_args_parser  # not public, but stable within hydra-core 1.3
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from peach_trl.config import ConfigError, build, did_you_mean, require_key, unknown_key
from peach_trl.utils.installed import folder_of

Schema = TypeVar("Schema")
Body = Callable[[Any, Path], Any]

_SWEEP = "PEACH_TRL_SWEEP"  # the environment variable with the command line of a sweep
LONGEST = 200  # bytes of a folder's name; file systems take 255


def recipe(
    schema: type, config_name: str, config_dir: Path | str | None = None
) -> Callable[[Body], Callable[[], None]]:
    """Turns ``body(config, run_dir)`` into the main function of a script.

    Args:
        schema: the schema of the whole configuration, see :mod:`peach_trl.config`.
        config_name: the YAML file, without its suffix; it lists ``base`` first in its ``defaults``.
        config_dir: the folder of the YAML files; by default ``configs`` beside the folder of the script.

    The decorated function takes no arguments: it reads ``sys.argv``, and calls ``body`` with an instance of ``schema``
    and Hydra's output folder, once, or once for each combination of a sweep; Hydra's sweepers get what it returns. A
    :class:`ConfigError`, also one that ``body`` raises, is printed in one line and ends the program with exit code 2.

    Examples:
        The end of a script ``recipes/peach.py``::

            @recipe(PeachConfig, config_name="peach")
            def main(config: PeachConfig, run_dir: Path) -> None:
                with Run(run_dir, dataclasses.asdict(config)) as run:
                    ...

            if __name__ == "__main__":
                main()
    """

    def decorate(body: Body) -> Callable[[], None]:
        script = Path(inspect.getfile(body)).resolve()
        folder = Path(config_dir).resolve() if config_dir else script.parent.parent / "configs"

        def task(composed: DictConfig) -> Any:
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            try:
                config = _goes_on(_build(schema, composed), run_dir)
                return None if config is None else body(config, run_dir)
            except ConfigError as error:
                if run_dir.is_dir() and not any(run_dir.iterdir()):
                    run_dir.rmdir()
                _exit(error)

        # Hydra names the job by the module of the function that it is given.
        task.__module__ = script.stem
        run = hydra.main(version_base=None, config_path=str(folder), config_name=config_name)(task)

        @functools.wraps(body)
        def main() -> None:
            try:
                _check_command_line(schema, folder, config_name)
            except ConfigError as error:
                _exit(error)
            os.environ[_SWEEP] = "\n".join(sys.argv[1:])
            sys.argv += _folder_of_resumed(*_command_line())
            run()

        return main

    return decorate


def _goes_on(config: Any, run_dir: Path) -> Any:
    """The configuration of the run that is to be gone on with, if ``resume`` names one.

    ``None`` where it is ``auto``, as for a job that is started again, and the run is finished.
    """
    if getattr(config, "resume", None) is None:
        return config
    from peach_trl.resume import FinishedError, resumed_config  # here, as it imports torch

    if config.resume == "auto":
        _refuse_stamp()
    given = [override.key_or_group for override in _overrides(HydraConfig.get().overrides.task)]
    try:
        return resumed_config(config, run_dir, given)
    except FinishedError as error:
        if config.resume != "auto":
            raise
        print(error)
        return None


def _refuse_stamp() -> None:
    """Raises a ConfigError where the folder is named by the time: the next start would not find it."""
    state: Any = HydraConfig.instance().cfg
    kind = "run" if HydraConfig.get().mode == RunMode.RUN else "sweep"
    if "${now:" in str(OmegaConf.to_container(state.hydra[kind], resolve=False)["dir"]):  # type: ignore[index]
        raise ConfigError(
            f"resume = 'auto': this run's folder is named by the time, and no later start would find it; set "
            f"hydra.{kind}.dir=FOLDER, the same each time"
        )


def _folder_of_resumed(arguments: Any, overrides: Sequence[Override]) -> list[str]:
    """What makes a resumed run's folder Hydra's.

    Raises:
        ConfigError: for a sweep, each of whose runs has a folder of its own.
    """
    named = [override for override in overrides if override.key_or_group == "resume"]
    folder = named[-1].value() if named else None
    if folder is None or folder == "auto":
        return []
    if arguments.multirun:
        _exit(ConfigError(f"resume = {folder}: a sweep has many runs; go on with one of them, or set resume=auto"))
    if not Path(str(folder)).is_dir():
        _exit(ConfigError(f"resume = {folder}: there is no such folder; give that of a run"))
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.run.dir='{quoted}'"]


def _overrides(texts: Iterable[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(texts))


def folder_name(overrides: Sequence[str], given: Sequence[str] = ()) -> str:
    """A name for the folder of one run of a sweep: what differs from the others, such as ``depth-2_latent_dim-5``.

    It stands on a command line without quotes. Where it would be longer than file systems take, the last overrides are
    counted, not named; the run's ``config.yaml`` has all.

    Args:
        overrides: of this run, ``KEY=VALUE``.
        given: those of the whole sweep, as on the command line; what is literally there is the same in all runs.

    Examples:
        >>> folder_name(["hierarchy.depth=2", "seed=0", "env=FullCircle"], ["hierarchy.depth=1,2", "seed=0"])
        'depth-2_env-FullCircle'
        >>> folder_name(["top.tau=0.1", "lower.tau=0.2", "context.encoder=own:Encoder"])
        'top.tau-0.1_lower.tau-0.2_encoder-own-Encoder'
    """
    pairs = [text.lstrip("+~").partition("=")[::2] for text in overrides if text not in given]
    last = [key.rpartition(".")[2] for key, _ in pairs]
    names = [short if last.count(short) == 1 else key for (key, _), short in zip(pairs, last, strict=True)]
    texts = [f"{name}-{value}" for name, (_, value) in zip(names, pairs, strict=True)]
    parts = [re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII) for text in texts]
    for count in range(len(parts), -1, -1):
        rest = [f"and-{len(parts) - count}-more"] * (count < len(parts))
        if len(name := "_".join([*parts[:count], *rest])) <= LONGEST:
            break
    return name


def _name_of_job(overrides: Any) -> str:
    given = os.environ.get(_SWEEP)  # launchers start other processes, whose command line is another
    return folder_name([str(text) for text in overrides], sys.argv[1:] if given is None else given.split("\n"))


OmegaConf.register_new_resolver("folder_name", _name_of_job, replace=True)


def load_config(
    schema: type[Schema], config_name: str, config_dir: Path | str | None = None, overrides: Sequence[str] = ()
) -> Schema:
    """Composes and checks a recipe's configuration outside of its command line, as for a notebook or a test.

    Args:
        schema: the schema of the whole configuration.
        config_name: the YAML file, without its suffix.
        config_dir: the folder of the YAML files; by default that of this package's recipes.
        overrides: as on the command line, such as ``["hierarchy.depth=2"]``.

    Raises:
        ConfigError: for an unknown key or a value that cannot be used.
        HydraException: for a missing file, or an override that is no override.

    Examples:
        >>> import dataclasses, tempfile
        >>> from peach_trl.config import option
        >>> @dataclasses.dataclass(frozen=True)
        ... class ArmConfig:
        ...     joints: int = option(low=1, help="number of joints")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "arm.yaml").write_text("joints: 3")
        ...     load_config(ArmConfig, "arm", folder, ["joints=5"])
        ArmConfig(joints=5)
        >>> from peach_trl.experiment import PeachConfig
        >>> load_config(PeachConfig, "peach", overrides=["hierarchy.depth=3"]).hierarchy.depth
        3
    """
    folder = folder_of("configs") if config_dir is None else Path(config_dir).resolve()
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    _check_keys(functools.partial(require_key, schema), [folder], parsed)
    return _build(schema, _compose(folder, config_name, overrides))


def check_keys_of(script: Path) -> None:
    """Ends the program, as ``recipe`` does, where its command line overrides a key that no YAML file of its has.

    This needs no schema, and so neither torch nor the modules of the recipe. What it cannot judge it leaves to them.

    Args:
        script: ``recipes/NAME.py`` with ``configs/NAME.yaml``; for other scripts nothing happens.
    """
    script = script.resolve()
    folder = script.parent.parent / "configs"
    if not (folder / f"{script.stem}.yaml").is_file():
        return
    arguments, overrides = _command_line()
    if arguments is None or arguments.config_path or arguments.config_dir:
        return
    name = arguments.config_name or script.stem
    if (folder / f"{name}.yaml").is_file():
        try:
            # what is added may be new in every file: the schema judges it
            known = [override for override in overrides if not override.is_add()]
            _check_keys(functools.partial(_require_in_files, folder, name), [folder], known)
        except ConfigError as error:
            _exit(error)


def _command_line() -> tuple[Any, list[Override]]:
    """Hydra's arguments and the overrides of this command line, or None and none where there is nothing to check."""
    arguments, _ = get_args_parser().parse_known_args()
    if arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion:
        return None, []
    try:
        return arguments, OverridesParser.create().parse_overrides(arguments.overrides)
    except HydraException:
        return None, []


def _check_command_line(schema: type, folder: Path, config_name: str) -> None:
    """Raises the ConfigError that any job of this command line would meet; leaves other errors for Hydra to report."""
    arguments, overrides = _command_line()
    if arguments is None:
        return
    folders = [folder, *([Path(arguments.config_dir)] if arguments.config_dir else [])]
    elsewhere = bool(arguments.config_path)
    _check_keys(functools.partial(require_key, schema), folders, overrides, elsewhere)
    if arguments.config_name and not elsewhere:
        _check_name(folders, "", arguments.config_name.removesuffix(".yaml"), "--config-name")
    if elsewhere or arguments.config_dir:
        return
    for combination in _combinations(overrides, arguments.multirun):
        try:
            composed = _compose(folder, arguments.config_name or config_name, combination)
        except (HydraException, OmegaConfBaseException):
            return
        _build(schema, composed)


def _check_name(folders: Sequence[Path], group: str, name: str, key: str) -> None:
    """Raises a ConfigError where none of the folders has a YAML file of this name in a group."""
    places = [folder / group for folder in folders]
    if any((place / f"{name}.yaml").is_file() for place in places):
        return
    known = sorted({path.stem for place in places for path in place.glob("*.yaml")})
    remedy = did_you_mean(name, known, f"{key}=")
    raise ConfigError(f"{key} = {name}: no such file in {places[0].name}/; {remedy}")


def _check_choices(folders: Sequence[Path], override: Override) -> None:
    """Raises a ConfigError where a group's file that an override chooses, or one of a sweep's, does not exist."""
    if override.is_delete() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return
    sweep = override.is_discrete_sweep()
    for name in override.sweep_string_iterator() if sweep else [override.value()]:
        if isinstance(name, str):
            _check_name(folders, override.key_or_group, name, override.key_or_group)


def _check_keys(
    require: Callable[[str, Any], None], folders: Sequence[Path], overrides: Sequence[Override], elsewhere: bool = False
) -> None:
    """Hands every overridden key to ``require``, but for Hydra's and those that are a group of YAML files.

    Where it is one, the file must be there, in one of the folders, unless the command line puts another in their place.
    """
    for override in overrides:
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] == "hydra":
            continue
        if any((folder / key).is_dir() for folder in folders):
            if not elsewhere:
                _check_choices(folders, override)
        else:
            require(key, _text(override))


def _require_in_files(folder: Path, config_name: str, key: str, value: Any) -> None:
    """Raises the ConfigError of an unknown key where no file of a configuration has it, nor leaves it open."""
    known = []
    for values in _files_of(folder, config_name):
        if _stands_in(values, key):
            return
        known += _dotted(values)
    raise unknown_key(key, value, known)


def _files_of(folder: Path, config_name: str) -> Iterator[Any]:
    """The values in a YAML file, in those that its ``defaults`` name, and in all files of the groups among these."""
    values: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{config_name}.yaml"))
    defaults = values.pop("defaults", [])
    yield values
    for name in defaults:
        if isinstance(name, str) and name != "_self_":
            yield from _files_of(folder, name)
    yield from _files_of_groups(folder, defaults, set())


def _files_of_groups(folder: Path, defaults: list[Any], seen: set[str]) -> Iterator[Any]:
    """The values in all files of the groups that a list of ``defaults`` names, and of those that these name."""
    for group in (group.lstrip("/") for entry in defaults if isinstance(entry, dict) for group in entry):
        if group in seen:
            continue
        seen.add(group)
        for path in sorted((folder / group).glob("*.yaml")):
            chosen: Any = OmegaConf.to_container(OmegaConf.load(path))
            further, first = chosen.pop("defaults", []), path.read_text().partition("\n")[0]
            package = first.removeprefix("# @package ") if first.startswith("# @package ") else group
            for name in reversed([] if package == "_global_" else package.split(".")):
                chosen = {name: chosen}
            yield chosen
            yield from _files_of_groups(folder, further, seen)


def _stands_in(values: Any, key: str) -> bool:
    """Whether nested values have a dotted key, or could: a group that is null or empty may be given any keys."""
    for name in key.split("."):
        if not values and (values is None or isinstance(values, Mapping)):
            return True
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def _dotted(values: Any, path: str = "") -> list[str]:
    """All keys of nested values, also those of its groups."""
    if not isinstance(values, Mapping):
        return []
    keys = [[f"{path}{name}", *_dotted(value, f"{path}{name}.")] for name, value in values.items()]
    return list(itertools.chain(*keys))


def _text(override: Override) -> Any:
    """The value of an override, as it was written where it is a sweep."""
    if override.is_delete() or override.is_sweep_override():
        return override.value_type and override.get_value_string()
    return override.value()


def _combinations(overrides: Sequence[Override], multirun: bool) -> Iterator[list[str]]:
    """The overrides of each job; none where a sweep cannot be listed, as an interval: each job checks itself, too."""
    choices = []
    for override in overrides:
        if override.key_or_group.split(".")[0].split("/")[0] == "hydra":
            continue
        if not (multirun and override.is_sweep_override()):
            choices.append([override.input_line])
        elif override.is_discrete_sweep() and override.value_type != ValueType.GLOB_CHOICE_SWEEP:
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            return iter(())
    return (list(combination) for combination in itertools.product(*choices))


def _compose(folder: Path, config_name: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose(config_name, overrides=list(overrides))


def _build(schema: type[Schema], composed: DictConfig) -> Schema:
    """Checks what Hydra composed against the schema."""
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} = ???: missing; set {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: {first_line}; correct the ${{...}} in its value") from None
    return build(schema, values)  # type: ignore[arg-type]


def _exit(error: ConfigError) -> None:
    print(f"Configuration error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)
