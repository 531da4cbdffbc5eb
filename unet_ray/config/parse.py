"""Flags and YAML into one settings object.

tyro reads kebab-case flags, space-separated lists, ``--flag/--no-flag`` and the
help texts from pydantic classes. What it lacks is here: a YAML file under the
flags, ``--print-config``, and errors in one sentence.
"""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel

from unet_ray.config.base import Config
from unet_ray.errors import ConfigError

Settings = TypeVar("Settings", bound=Config)

# scheme://user:password@host, or ?...key=, ?...token= and such.
_WITH_CREDENTIALS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:(?P<user>[^/?#\s]*@)"
    r"|(?P<place>[^?#\s]*)\?\S*(?:key|secret|token|sig|signature|credential|password)[^=&\s]*=)",
    re.IGNORECASE,
)


class _Yaml(yaml.SafeLoader):
    """Words but for true, false and null: the parser of flags reads numbers, and to it the sections 1:3 are no 63."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; of a key that is there twice, YAML's own loader takes the last without a word."""
        keys = [key.value for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if key.value in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] in ("bool", "null", "merge")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(kind: type[Settings], argv: Sequence[str], program: str) -> Settings:
    """Settings of ``kind`` from command-line flags over the YAML file that ``--config`` names.

    ``--help`` and ``--print-config`` print and leave with exit code 0.

    Raises:
        ConfigError: a flag, a key or a value is wrong; the nearest right name is given.
        SystemExit: after ``--help`` and ``--print-config``.
    """
    flags, config_path, print_config = _own_flags(argv)
    from_file = _read_yaml(config_path) if config_path is not None else {}
    given = [*_as_flags(from_file), *flags]
    _refuse_credentials(given)  # first: the other refusals say what they were given
    _refuse_unknown_keys(kind, from_file, config_path)
    _refuse_wrong_names(kind, given, program)
    settings = _tyro(kind, given, program)
    # Again over what the chosen preset or recipe sets: only what was given by name stays different from it.
    settings = _tyro(kind, given, program, settings.named_defaults())
    if print_config:
        sys.stdout.write(to_yaml(settings))
        raise SystemExit(0)
    return settings


def to_yaml(settings: BaseModel) -> str:
    """The resolved settings as YAML, in the words of the file."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _own_flags(argv: Sequence[str]) -> tuple[list[str], str | None, bool]:
    """``argv`` without ``--config FILE`` and ``--print-config``, and what those said."""
    rest, path, print_config = list[str](), None, False
    words = iter(argv)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            before, path = path, word.partition("=")[2] or next(words, None)
            if not path or path.startswith("--"):
                raise ConfigError("--config was given no file; name a YAML file, such as --config run.yaml")
            if before is not None:
                raise ConfigError(f"--config was given twice, {before} and {path}; put what both say into one file")
        elif word == "--print-config":
            print_config = True
        else:
            rest.append(word)
    return rest, path, print_config


def _read_yaml(path: str) -> dict[str, Any]:
    file = Path(path)
    try:
        # A named pipe may never be written to. What a shell hands over, as in --config <(...), is written already.
        if file.exists() and not (file.is_file() or file.is_dir() or path.startswith(("/dev/fd/", "/dev/stdin"))):
            raise ConfigError(f"--config {path} is a pipe or a device and no file; save what comes from it to a file")
        loaded = yaml.load(file.read_text(encoding="utf-8"), _Yaml)
    except OSError as error:
        raise ConfigError(
            f"--config {path} cannot be read ({error.strerror}); name a YAML file that is there and that you may read"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"--config {path} is not YAML ({where}); mend the file") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"--config {path} holds a {type(loaded).__name__}; it must hold keys and values")
    return loaded


def _refuse_credentials(words: Sequence[str]) -> None:
    """A URL goes into logs, lists of jobs and the output's metadata, where a secret must not be read."""
    for word in words:
        found = _WITH_CREDENTIALS.search(word)
        if found is not None:
            shown = f"{found['scheme']}***@..." if found["user"] else f"{found['scheme']}{found['place']}?***"
            raise ConfigError(
                f"the URL {shown} holds credentials; give them by the environment (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, a role), and the URL without"
            )


def _nearest(word: str, known: Sequence[str], what: str) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"the nearest {what} is {close[0]}" if close else f"see --help for every {what}"


def _refuse_unknown_keys(kind: type[BaseModel], values: Mapping[str, Any], path: str | None, under: str = "") -> None:
    for key, value in values.items():
        if key not in kind.model_fields:
            nearest = _nearest(str(key), list(kind.model_fields), "key")
            raise ConfigError(f"--config {path} has the unknown key {under}{key}; {nearest}")
        inner = kind.model_fields[key].annotation
        if wanted := _wanted_instead(inner, value):
            raise ConfigError(f"--config {path} gives {under}{key} {_as_yaml(value)}; it takes {wanted}")
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            _refuse_unknown_keys(inner, value, path, f"{under}{key}.")


def _wanted_instead(annotation: Any, value: Any) -> str:
    """What a key takes, where a value is of another kind; nothing where it is of that kind, as far as YAML tells."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "" if isinstance(value, dict) else "keys and values below it"
    if annotation is bool:
        return "" if isinstance(value, bool) else "true or false"
    alternatives = (annotation, *get_args(annotation))
    a_list = any(get_origin(alternative) is tuple for alternative in alternatives)
    wanted = "a value or a list" if a_list else "a value"
    if isinstance(value, bool):
        return f"{wanted}, and a word such as no or on only in quotes"
    others = isinstance(value, dict) or (value is None and type(None) not in alternatives)
    return wanted if others or (isinstance(value, list) and not a_list) else ""


def _as_yaml(value: Any) -> str:
    """A value as the file has it, about."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, str) else repr(value)


def _as_flags(values: Mapping[str, Any], under: str = "") -> Iterator[str]:
    """The YAML's keys and values as flags, so that both go through one parser."""
    for key, value in values.items():
        name = f"{under}{str(key).replace('_', '-')}"
        if isinstance(value, dict):
            yield from _as_flags(value, f"{name}.")
        elif isinstance(value, bool):
            prefix, _, last = name.rpartition(".")
            yield f"--{prefix}{'.' if prefix else ''}{'' if value else 'no-'}{last}"
        else:
            yield f"--{name}"
            yield from (str(item) for item in (value if isinstance(value, list) else [value]))


def _flag_names(kind: type[BaseModel], under: str = "") -> Iterator[str]:
    for key, field in kind.model_fields.items():
        name = key.replace("_", "-")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _flag_names(field.annotation, f"{under}{name}.")
        else:
            yield f"--{under}{name}"
            if field.annotation is bool:
                yield f"--{under}no-{name}"


def _refuse_wrong_names(kind: type[BaseModel], flags: Sequence[str], program: str) -> None:
    """Before tyro, which speaks of a missing option where a required one is misspelt."""
    known = [*_flag_names(kind), "--help", "--config", "--print-config"]
    given = {word.partition("=")[0].replace("_", "-"): word.partition("=")[0] for word in flags if word[:2] == "--"}
    for name, word in given.items():
        if name not in known and not name.startswith("--tyro-"):
            raise ConfigError(f"{word} is not an option of {program}; {_nearest(name, known, 'option')}")
    required = [f"--{key.replace('_', '-')}" for key, field in kind.model_fields.items() if field.is_required()]
    missing = [name for name in required if name not in given]
    if missing and not {"--help", "-h"} & {*flags}:
        raise ConfigError(f"{program} was not given {' and '.join(missing)}; see --help for what each option takes")


def _description(kind: type[BaseModel]) -> str:
    return (
        f"{kind.__doc__}\n\n--config FILE.yaml reads the same words in snake_case (flags win over the file); "
        "--print-config prints the resolved settings as YAML and exits."
    )


def _tyro(kind: type[Settings], flags: Sequence[str], program: str, default: Settings | None = None) -> Settings:
    import tyro  # slow to import, and needed by nobody who only builds settings in Python

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            settings: Settings
            settings, unknown = tyro.cli(
                kind,
                prog=program,
                description=_description(kind),
                args=list(flags),
                return_unknown_args=True,
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        raise ConfigError(_one_sentence(printed.getvalue())) from None
    if unknown:
        raise ConfigError(f"{program} was given {unknown[0]!r}, which no option takes; see --help for what each takes")
    return settings


def _one_sentence(printed: str) -> str:
    """The boxed message that tyro prints, on one line and without what only the box needs."""
    text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", printed)
    text = " ".join(text.split())
    for rest in ("For full helptext", "Argument helptext", "Got errors"):
        text = text.partition(rest)[0]
    refused = re.search(
        r"Error parsing ([\w.-]+): \d+ validation errors? for (\w+) "
        r"(?:(?!Value error,)(\S+) )?(?:Value error, )?(.*?) \[type=\w+, input_value=(.*?), input_type",
        text,
    )
    if refused is not None:
        under, kind, key, why, given = refused.groups()
        # pydantic appends which alternative of a union it tried.
        names = [*([] if under == kind else [under]), *([] if key is None else [key.partition(".")[0]])]
        option = f"--{'.'.join(names)}".replace("_", "-")
        text = f"{option} was given {given}: {why}" if key is not None else f"{option}: {why}" if names else why
    for heading in ("Value error", "Parsing error", "Invalid choice", "Missing argument"):
        text = text.removeprefix(f"{heading} ")
    return f"{text.strip().rstrip('.')}; see --help for what each option takes"
