"""radam.h as another language sees it: the library of the installed wheel, through ctypes alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

import radam

Array = np.ndarray[Any, Any]

OK, INVALID_ARGUMENT, IO_ERROR, OUT_OF_MEMORY, BUSY = range(5)
FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = range(4)
DTYPES = {"float64": FLOAT64, "float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
STATE_DTYPES = {"float32": 0, "bfloat16": 1, "8bit": 2}
BY_CONVENTION = -1
BLOCK = 128  # elements that share a scale
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
CLIPPING = ("max_grad_norm", "max_tensor_grad_norm", "max_grad_value")
PRECISION = ("state_dtype", "master_weights", "stochastic_rounding", "min_8bit_size", "seed")


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("decoupled_weight_decay", c_int32),
        ("maximize", c_int32),
        ("amsgrad", c_int32),
        ("lr", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
    )


class Precision(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("state_dtype", c_int32),
        ("master_weights", c_int32),
        ("stochastic_rounding", c_int32),
        ("min_8bit_size", c_int64),
        ("seed", c_uint64),
    )


class State(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("moment_dtype", c_int32),
        *((name, c_void_p) for name in MOMENTS),
        *((f"{name}_scale", c_void_p) for name in MOMENTS),
        ("master", c_void_p),
    )


class ParamOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("ndim", c_int32),
        ("shape", POINTER(c_int64)),
        ("name", c_char_p),
        ("state", POINTER(State)),
    )


PART = ctypes.CFUNCTYPE(None, c_void_p, c_int)
RUN = ctypes.CFUNCTYPE(None, c_void_p, c_int, PART, c_void_p)

# The arguments of every function that returns a status. The handle is a void*.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "options_init": (POINTER(Options), c_size_t),
    "precision_init": (POINTER(Precision), c_size_t),
    "state_init": (POINTER(State), c_size_t),
    "param_options_init": (POINTER(ParamOptions), c_size_t),
    "create": (POINTER(c_void_p), POINTER(Options), c_char_p, POINTER(Precision)),
    "destroy": (c_void_p,),
    "add_group": (c_void_p, POINTER(Options), POINTER(c_size_t)),
    "get_options": (c_void_p, c_size_t, POINTER(Options)),
    "set_options": (c_void_p, c_size_t, POINTER(Options)),
    "set_lr": (c_void_p, c_double),
    "set_group_lr": (c_void_p, c_size_t, c_double),
    "count": (c_void_p, POINTER(c_size_t), POINTER(c_size_t)),
    "add_param": (
        c_void_p,
        c_void_p,
        c_int,
        c_void_p,
        c_int,
        c_int64,
        POINTER(ParamOptions),
        POINTER(c_size_t),
    ),
    "set_param": (c_void_p, c_size_t, c_void_p),
    "set_grad": (c_void_p, c_size_t, c_void_p),
    "get_steps": (c_void_p, c_size_t, POINTER(c_int64)),
    "get_state": (c_void_p, c_size_t, POINTER(State)),
    "set_max_grad_norm": (c_void_p, c_double),
    "set_max_tensor_grad_norm": (c_void_p, c_double),
    "set_max_grad_value": (c_void_p, c_double),
    "set_no_clipping": (c_void_p,),
    "set_grad_scale": (c_void_p, c_double),
    "set_skip_nonfinite": (c_void_p, c_int),
    "step": (c_void_p, POINTER(c_int)),
    "get_grad_norm": (c_void_p, POINTER(c_double)),
    "get_skipped_steps": (c_void_p, POINTER(c_int64)),
    "save": (c_void_p, c_char_p),
    "load": (c_void_p, c_char_p),
    "set_num_threads": (c_int,),
    "get_num_threads": (POINTER(c_int),),
    "set_executor": (c_void_p, c_int, RUN, c_void_p),
    "set_isa": (c_char_p,),
    "get_isa": (POINTER(c_char_p),),
}
TEXTS = ("last_error", "version")


def path() -> Path:
    """Return the library's own path; a wheel for Windows keeps it in bin, others in lib."""
    package = Path(radam.__file__).parent
    names = ("lib/libradam.so", "lib/libradam.dylib", "bin/radam.dll")
    found = [package / name for name in names if (package / name).is_file()]
    assert found, f"the wheel in {package} has no libradam"
    return found[0]


def load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(path()))
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, f"radam_{name}")
        function.argtypes, function.restype = arguments, c_int
    for name in TEXTS:
        function = getattr(library, f"radam_{name}")
        function.argtypes, function.restype = (), c_char_p
    return library


LIBRARY = load()


class RadamError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def status_of(name: str, *arguments: Any) -> int:
    return int(getattr(LIBRARY, f"radam_{name}")(*arguments))


def last_error() -> str:
    text = LIBRARY.radam_last_error()
    assert text is not None
    return str(text, "utf-8")


def call(name: str, *arguments: Any) -> None:
    status = status_of(name, *arguments)
    if status != OK:
        raise RadamError(status, last_error())


def asked(function: str, kind: Any, *arguments: Any) -> Any:
    """What a function writes to its last argument."""
    found = kind()
    call(function, *arguments, ctypes.byref(found))
    return found.value


def options_of(given: Mapping[str, Any]) -> Options:
    """The struct of a group's options, in Python's own words."""
    options = Options()
    call("options_init", ctypes.byref(options), ctypes.sizeof(options))
    for name, value in given.items():
        if name == "betas":
            options.beta1, options.beta2 = value
        elif name not in ("params", "param_names"):
            setattr(options, name, BY_CONVENTION if value is None else value)
    return options


def precision_of(given: Mapping[str, Any]) -> Precision:
    precision = Precision()
    call("precision_init", ctypes.byref(precision), ctypes.sizeof(precision))
    for name, value in given.items():
        setattr(precision, name, STATE_DTYPES[value] if name == "state_dtype" else value)
    return precision


class Optimizer:
    """radam.RAdam's face over radam.h, for arrays in C order: its groups, its options, one of its conventions."""

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        convention: str = "torch",
        grad_dtype: str | None = None,  # the parameters' own
        **keywords: Any,
    ) -> None:
        rest = {name: value for name, value in keywords.items() if name not in (*CLIPPING, *PRECISION)}
        precision = precision_of({name: keywords[name] for name in PRECISION if name in keywords})
        self.handle = c_void_p()
        self.params: list[Array] = []
        self._grads: list[Array] = []  # kept alive: a step reads them
        call("create", ctypes.byref(self.handle), options_of(rest), convention.encode(), ctypes.byref(precision))
        for group in groups:
            call("add_group", self.handle, options_of({**rest, **group}), None)
            for param in group["params"]:
                self.add(param, grad_dtype or param.dtype.name)
        for name in CLIPPING:
            if keywords.get(name) is not None:
                call(f"set_{name}", self.handle, keywords[name])

    def add(self, param: Array, grad_dtype: str, name: str | None = None) -> int:
        assert param.flags.c_contiguous
        options = ParamOptions()
        call("param_options_init", ctypes.byref(options), ctypes.sizeof(options))
        options.ndim, options.shape = param.ndim, (c_int64 * param.ndim)(*param.shape)
        options.name = None if name is None else name.encode()
        dtypes = DTYPES[param.dtype.name], DTYPES[grad_dtype]
        index = c_size_t()
        call(
            "add_param", self.handle, param.ctypes.data, dtypes[0], None, dtypes[1], param.size, options,
            ctypes.byref(index),
        )  # fmt: skip
        self.params.append(param)
        return index.value

    def step(self, grads: Iterable[Array | None]) -> bool:
        self._grads = []
        for index, grad in enumerate(grads):
            if grad is not None:
                self._grads.append(grad)
            call("set_grad", self.handle, index, None if grad is None else grad.ctypes.data)
        return bool(asked("step", c_int, self.handle))

    def steps(self, index: int) -> int:
        return int(asked("get_steps", c_int64, self.handle, index))

    def options(self, group: int) -> Options:
        found = options_of({})
        call("get_options", self.handle, group, ctypes.byref(found))
        return found

    def state_bytes(self) -> list[dict[str, bytes]]:
        """The bytes of every state, by Python's names of its parts."""
        found = []
        for index, param in enumerate(self.params):
            state = State()
            call("state_init", ctypes.byref(state), ctypes.sizeof(state))
            call("get_state", self.handle, index, ctypes.byref(state))
            width = {0: 8, 1: 4, 2: 2, 4: 1}[state.moment_dtype]
            entry = {}
            for name in MOMENTS:
                if getattr(state, name) is not None:
                    key = f"{name}_code" if width == 1 else name
                    entry[key] = ctypes.string_at(getattr(state, name), param.size * width)
                if getattr(state, f"{name}_scale") is not None:
                    scales = -(-param.size // BLOCK)
                    entry[f"{name}_scale"] = ctypes.string_at(getattr(state, f"{name}_scale"), 4 * scales)
            if state.master is not None:
                key, width = ("remainder", 2) if param.dtype.name == "bfloat16" else ("master", 4)
                entry[key] = ctypes.string_at(state.master, param.size * width)
            found.append(entry)
        return found

    def save(self, path: Path) -> None:
        call("save", self.handle, str(path).encode())

    def load(self, path: Path) -> None:
        call("load", self.handle, str(path).encode())

    def destroy(self) -> None:
        call("destroy", self.handle)
