"""What the key of a request may do; asked by every path that does something.

Knows nothing about where keys are kept or how they are sent. Invariant: whether a collection may be used is decided
before it is looked for, with the same words and the same work whether it is there or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from hybridqa.keys import Key, Role
from hybridqa.server.errors import ApiError
from hybridqa.types import DEFAULT_COLLECTION


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may do."""

    key: Key | None  # None: the server asks for none, and whoever reaches it may do everything

    @property
    def role(self) -> Role:
        """How far it goes."""
        return Role.ADMIN if self.key is None else self.key.role

    @property
    def everywhere(self) -> bool:
        """Whether it reaches every collection."""
        return self.key is None or self.key.collections is None

    def may_use(self, collection: str) -> bool:
        """Whether it reaches a collection, be it there or not."""
        return self.key is None or self.key.may_use(collection)

    def collection(self, name: str | None, param: str = "collection") -> str:
        """The collection that a request means: the one it names, or else the default one, or the only one it reaches.

        Raises `ApiError`.
        """
        if name is None:
            own = () if self.key is None or self.key.collections is None else self.key.collections
            if len(own) != 1 and not self.may_use(DEFAULT_COLLECTION):
                raise ApiError(
                    400,
                    f"no collection was named, and this key reaches several; expected one of "
                    f"{', '.join(map(repr, own))}.",
                    param=param,
                    code="collection_missing",
                )
            return own[0] if len(own) == 1 else DEFAULT_COLLECTION
        if not self.may_use(name):
            raise ApiError(
                403, f"this key does not reach collection {name!r}.", param=param, code="collection_forbidden"
            )
        return name


def needs(role: Role) -> Callable[[Request], Access]:
    """What a path of this role asks of a request: its access. Raises `ApiError`."""

    def found(request: Request) -> Access:
        access: Access = request.state.access  # the gate has put it there
        if not access.role.covers(role):
            raise ApiError(
                403,
                f"this key has the role {str(access.role)!r}; {request.method} {request.url.path} needs {str(role)!r}.",
                code="role_forbidden",
            )
        return access

    return found


Asking = Annotated[Access, Depends(needs(Role.ASK))]
Editing = Annotated[Access, Depends(needs(Role.EDIT))]
Admin = Annotated[Access, Depends(needs(Role.ADMIN))]
