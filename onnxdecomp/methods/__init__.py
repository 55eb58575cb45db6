"""The registered decomposition methods: every module of this folder that has a `METHODS` tuple."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from onnxdecomp.errors import unknown_name
from onnxdecomp.methods.base import Method


@cache
def registered() -> tuple[Method, ...]:
    """Return every form of every method, ordered by full name; a doubled name is refused."""
    methods: dict[str, Method] = {}
    for module in iter_modules(__path__, __name__ + "."):
        for method in getattr(import_module(module.name), "METHODS", ()):
            if method.full_name in methods:
                raise ValueError(f"two methods are called {method.full_name}")
            methods[method.full_name] = method
    return tuple(methods[name] for name in sorted(methods))


def find_methods(name: str) -> tuple[Method, ...]:
    """Return the forms that `name` stands for.

    Args:
        name: ``auto`` for all automatic forms, a method's name for its automatic forms, or
            ``name/variant`` for exactly one.

    Raises:
        UsageError: There is no such method.
    """
    if name == "auto":
        return tuple(m for m in registered() if m.automatic)
    exact = tuple(m for m in registered() if m.full_name == name)
    found = exact or tuple(m for m in registered() if m.name == name and m.automatic)
    if not found:
        known = {m.name for m in registered()} | {m.full_name for m in registered()} | {"auto"}
        raise unknown_name("method", name, known)
    return found
