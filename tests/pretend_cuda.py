"""A GPU without a GPU: inside `pretend()` scripts find CUDA, compute on the CPU, and mixed devices
raise as they would.

    with pretend() as gpu:                 # as much memory as is asked for
        analyze.main([...])
    print(gpu.peak, gpu.waits)
    with pretend(gib=0.2) as gpu: ...      # allocations beyond raise torch.OutOfMemoryError

A tensor on it is a subclass that wraps a CPU tensor and tells Python `cuda:0`. Bytes are those of
storages that live at the same time; cudaMalloc's rounding, fragmentation, workspaces of cuBLAS and
temporaries inside one C++ kernel are not counted. `waits` counts what a host would wait for:
item(), nonzero, boolean indices, copies to the CPU.

What it cannot see: kernels (combinations of types that only CUDA refuses, failures of cuSOLVER,
other rounding), speed, streams, backward hooks in threads of CUDA's own, several devices, NCCL, and
what C++ composites do inside. It leans on torch's insides; `OLDEST` is the first version that it
was tried with.
"""

import collections
import contextlib
import types
import weakref

import torch
import torch._dynamo  # before anything is patched: it looks at signatures
import torch.utils._pytree as pytree
from torch.overrides import TorchFunctionMode

OLDEST = (2, 14)
CUDA, CPU, aten = torch.device("cuda:0"), torch.device("cpu"), torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
INDEXED = {
    aten.index.Tensor: 1,
    aten.index_put_.default: 1,
    aten.index_put.default: 1,
    aten._index_put_impl_.default: 1,
    aten._unsafe_index.Tensor: 1,
}
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
}


class Gpu:
    """What the pretended card holds and did. count: how many of it the machine has."""

    def __init__(self, gib: float | None, count: int) -> None:
        self.total, self.limited, self.count = int((gib or 80) * 2**30), gib is not None, count
        self.now = self.peak = self.refused = 0
        self.waits: collections.Counter = collections.Counter()
        self.chosen: list[int] = []  # devices that were made the current one
        self._known: dict[int, int] = {}

    def hold(self, tensor: torch.Tensor) -> torch.Tensor:
        """Counts the tensor's storage, and its end."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            if self.limited and self.now + size > self.total:
                self.refused += 1
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB."
                )
            self._known[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)
        return tensor

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


GPU: Gpu = Gpu(None, 1)


def is_cuda(device) -> bool:
    return (
        device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"
    )


def put(x, requires_grad: bool = False):
    """The tensor as one on the card; anything else as it is."""
    plain = isinstance(x, torch.Tensor) and not isinstance(x, Cuda)
    return Cuda(GPU.hold(x), requires_grad) if plain else x


class Cuda(torch.Tensor):
    """A CPU tensor that tells Python it is on cuda:0."""

    # a copy to the CPU was asked for in Python; C++ asks for device=cpu where it takes ours for one
    leaving = False

    @staticmethod
    def __new__(cls, elem: torch.Tensor, requires_grad: bool = False):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.shape,
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=CPU,
            requires_grad=requires_grad,
        )
        wrapper.elem = elem
        return wrapper

    def __init__(self, elem: torch.Tensor, requires_grad: bool = False) -> None:
        pass

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return 0

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    def untyped_storage(self):
        return self.elem.untyped_storage()

    def data_ptr(self):
        return self.elem.data_ptr()

    def __repr__(self, **_):
        return f"Cuda({self.elem!r})"

    def __reduce_ex__(self, protocol):
        raise RuntimeError("a CUDA tensor is pickled")

    def __deepcopy__(self, memo):
        return put(self.elem.detach().clone(), self.requires_grad)

    def cpu(self, *args, **kwargs):
        return self._leave()

    def _leave(self, **kwargs):
        Cuda.leaving = True
        return aten._to_copy.default(self, device=CPU, **kwargs)

    def cuda(self, *args, **kwargs):
        return self

    def pin_memory(self, *args, **kwargs):
        raise RuntimeError(
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"
        )

    def type(self, dtype=None, **kwargs):
        return super().type() if dtype is None else self.to(dtype)

    def to(self, *args, **kwargs):
        kwargs = dict(kwargs)
        copy = kwargs.pop("copy", False)
        device, dtype, form = target(args, kwargs)
        extra = {} if form is None else {"memory_format": form}
        changed = {} if dtype is None else {"dtype": dtype}
        if device is not None and device.type == "cpu":
            return self._leave(**changed, **extra)
        if (dtype is None or dtype == self.dtype) and not copy and not extra:
            return self
        return aten._to_copy.default(self, **changed, **extra)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        to_cpu, Cuda.leaving = Cuda.leaving, False
        if func in WAITS or to_cpu:
            GPU.waits["to cpu" if to_cpu else func.overloadpacket.__name__] += 1
        flat, spec = pytree.tree_flatten((args, kwargs))
        on_cuda = isinstance(args[0], Cuda) if args else False
        check_devices(func, args, flat, on_cuda)
        plain = [x.elem if isinstance(x, Cuda) else x for x in flat]
        a, k = pytree.tree_unflatten(plain, spec)
        out = func(*a, **k)
        if not on_cuda and func is aten.copy_.default:
            return args[0]
        given = {id(x.elem): x for x in flat if isinstance(x, Cuda)}
        places = {x.untyped_storage()._cdata for x in plain if isinstance(x, torch.Tensor)}

        def wrap(t):
            if not isinstance(t, torch.Tensor) or isinstance(t, Cuda):
                return t
            if id(t) in given:  # in place, or out=
                return given[id(t)]
            if to_cpu:
                return t.clone() if t.untyped_storage()._cdata in places else t
            return put(t)

        return pytree.tree_map(wrap, out)


def check_devices(func, args, flat, on_cuda: bool) -> None:
    """Raises where CUDA would: for arguments on two devices. Scalars and a CUDA tensor's CPU
    indices may mix.
    """
    place, indices = INDEXED.get(func), set()
    for index in pytree.tree_leaves(args[place]) if place is not None and len(args) > place else ():
        if isinstance(index, torch.Tensor):
            indices.add(id(index))
            GPU.waits["boolean index"] += index.dtype in (torch.bool, torch.uint8)
    for x in flat:
        if (
            isinstance(x, torch.Tensor)
            and not isinstance(x, Cuda)
            and x.dim() > 0
            and func not in COPIES
        ):
            if not (id(x) in indices and on_cuda):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found cuda:0 and cpu! "
                    f"({func})"
                )
            GPU.waits["index from the CPU"] += 1
    if indices and not on_cuda:
        raise RuntimeError(
            f"indices should be either on cpu or on the same device as the indexed tensor ({func})"
        )
    if func is aten.copy_.default and isinstance(args[0], Cuda) != isinstance(args[1], Cuda):
        GPU.waits["to cpu" if isinstance(args[1], Cuda) else "to cuda"] += 1


def target(args, kwargs) -> tuple:
    """(device, dtype, memory format) that Tensor.to's arguments name."""
    other = kwargs.get("other", args[0] if args and isinstance(args[0], torch.Tensor) else None)
    if other is not None:
        return other.device, other.dtype, None
    device, dtype, _, form = torch._C._nn._parse_to(*args, **kwargs)
    return device, dtype, form


class Send(torch.autograd.Function):
    """A CPU tensor on its way to the card."""

    @staticmethod
    def forward(ctx, x, dtype):
        return put(x.detach().to(dtype or x.dtype, copy=True))

    @staticmethod
    def backward(ctx, gradient):
        return gradient.cpu(), None


class Mode(TorchFunctionMode):
    """Catches what names the device cuda without having a Cuda argument."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.Tensor.to, torch.Tensor.cuda) and not isinstance(args[0], Cuda):
            asked = {name: value for name, value in kwargs.items() if name != "copy"}
            device, dtype, _ = (
                (CUDA, None, None) if func is torch.Tensor.cuda else target(args[1:], asked)
            )
            if is_cuda(device):
                GPU.waits["to cuda"] += 1
                if args[0].requires_grad and torch.is_grad_enabled():
                    return Send.apply(args[0], dtype)
                return put(args[0].detach().to(dtype or args[0].dtype, copy=True))
        if func is not torch._C._nn._parse_to and is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
            return pytree.tree_map(
                lambda t: put(t, getattr(t, "requires_grad", False)), func(*args, **kwargs)
            )
        return func(*args, **kwargs)


def stand_ins(gpu: Gpu) -> dict:
    """Functions of torch.cuda and what stands for them."""
    cpu_state = torch.get_rng_state
    return {
        "is_available": lambda: True,
        "device_count": lambda: gpu.count,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "a pretended GPU",
        "is_current_stream_capturing": lambda: False,
        "set_device": lambda device: gpu.chosen.append(
            device if isinstance(device, int) else device.index
        ),
        "mem_get_info": lambda device=None: (gpu.total - gpu.now, gpu.total),
        "empty_cache": lambda: None,
        "get_rng_state": lambda device=None: cpu_state(),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda device=None: None,
        "is_initialized": lambda: False,
        "get_device_capability": lambda device=None: (8, 0),
        "is_bf16_supported": lambda *args, **kwargs: True,
    }


@contextlib.contextmanager
def pretend(gib: float | None = None, count: int = 1):
    """Inside, there are GPUs, of which the first is used. gib: its memory (None: 80 GiB are
    claimed, more is given).
    """
    global GPU
    gpu = GPU = Gpu(gib, count)
    mode, engine, autocast = Mode(), torch.autograd._engine_run_backward, torch.autocast.__init__
    alike = (
        torch._has_compatible_shallow_copy_type
    )  # Module.to: a new Parameter instead of new data in the old one

    def backward(*args, **kwargs):
        with mode:  # which is off inside of its own handler, and hooks make tensors
            return engine(*args, **kwargs)

    with contextlib.ExitStack() as stack:

        def patch(owner, name: str, value) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        for name, value in stand_ins(gpu).items():
            patch(torch.cuda, name, value)
        patch(
            torch,
            "_has_compatible_shallow_copy_type",
            lambda a, b: not isinstance(b, Cuda) and alike(a, b),
        )
        no_stream = types.SimpleNamespace(is_capturing=lambda: False)
        patch(torch.accelerator, "current_stream", lambda device=None: no_stream)
        patch(torch.autograd, "_engine_run_backward", backward)
        patch(
            torch.autocast,
            "__init__",
            lambda self, device_type, *rest, **more: autocast(self, "cpu", *rest, **more),
        )
        stack.enter_context(mode)
        yield gpu
