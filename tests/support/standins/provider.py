"""What the providers share: the checks that come before a body's, and the checks of a body's members."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from support.standins.messages import Refusal, Reply, Request, Scripted
from support.standins.relevance import ranking


@dataclass
class Provider(ABC):
    """One provider's service. Its fields are the settings of `StandIn`.

    Attributes:
        locked: whether a key is needed; None is what is usual for the provider.
    """

    name: ClassVar[str]
    stage: ClassVar[str] = ""  # the type of the stage that calls it; the name by default
    paths: ClassVar[tuple[str, ...]]
    documents_key: ClassVar[str] = "documents"
    list_key: ClassVar[str | None] = "results"  # None: the reply is the bare list
    score_key: ClassVar[str] = "relevance_score"
    echo_key: ClassVar[str] = "document"
    needs_key: ClassVar[bool] = True

    locked: bool | None = None

    @property
    def key(self) -> str:
        """The key that the service knows."""
        return f"FAKE-{self.name}-key-no-secret-0123456789"

    @abstractmethod
    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """An error in the provider's shape."""

    @abstractmethod
    def check(self, body: Body) -> None:
        """Refuse a body that the service refuses."""

    @abstractmethod
    def reply(self, body: dict[str, Any]) -> Reply:
        """The normal reply to a body that passed `check`."""

    def errors(self) -> dict[str, Scripted]:
        """Every documented error, by a name that begins with its status."""
        return {}

    def invalid(self, where: str, message: str, value: Any) -> Reply:
        """The refusal of a member of the body."""
        return self.error(400, f"{where}: {message}")

    def wrong_type(self, request: Request) -> Reply:
        """The refusal of a body whose content type is not JSON."""
        return self.error(400, "the content type is not application/json")

    def not_json(self) -> Reply:
        """The refusal of a body that is not JSON."""
        return self.error(400, "the body is not valid JSON")

    def missing_key(self) -> Reply:
        """The refusal of a request without a key."""
        return self.wrong_key()

    def wrong_key(self) -> Reply:
        """The refusal of a key that the service does not know."""
        return self.error(401, "invalid api key")

    def too_large(self, request: Request) -> Reply | None:
        """The refusal of a body by its size alone."""
        return None

    def overloaded(self, body: dict[str, Any]) -> Reply | None:
        """The refusal for want of a free slot."""
        return None

    def occupy(self, request: Request) -> int:
        """Take the slots that a request needs while it is served; how many."""
        return 0

    def leave(self, slots: int) -> None:  # noqa: B027 - most providers have no slots
        """Give slots back."""

    def stamped(self, reply: Reply, request: Request) -> Reply:
        """Add what differs between replies, such as the id of the request."""
        return reply

    def get(self, request: Request) -> Reply | None:
        """The reply to a GET of a path that needs no key, or None for any other path."""
        return None

    def answer(self, request: Request) -> Reply:
        """The service's own reply.

        Raises:
            Refusal: it is an error.
        """
        if request.method == "GET" and (reply := self.get(request)) is not None:
            return reply
        if request.path not in self.paths:
            refuse(self.error(404, f"no such path: {request.path}"), "no such path")
        if request.method != "POST":
            refuse(self.error(405, "method not allowed"), "method not allowed")
        self._check_key(request)
        if (reply := self.too_large(request)) is not None:
            refuse(reply, "too large")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            refuse(self.wrong_type(request), "content type")
        try:
            body = json.loads(request.raw.decode(), parse_constant=_no_constant)
        except ValueError:
            refuse(self.not_json(), "not JSON")
        if not isinstance(body, dict):
            refuse(self.invalid("body", "must be an object", body), "body: must be an object")
        self.check(Body(self, body))
        if (reply := self.overloaded(body)) is not None:
            refuse(reply, "overloaded")
        return self.reply(body)

    def _check_key(self, request: Request) -> None:
        """By the exact header, as the services do."""
        if not self.locks(request):
            return
        sent = request.headers.get("authorization")
        if not sent:
            refuse(self.missing_key(), "no key")
        if sent != f"Bearer {self.key}":
            refuse(self.bad_header() if not sent.startswith("Bearer ") else self.wrong_key(), "wrong key")

    def locks(self, request: Request) -> bool:
        """Whether a request needs the key."""
        return self.needs_key if self.locked is None else self.locked

    def bad_header(self) -> Reply:
        """The refusal of an Authorization header that is not of the form ``Bearer <key>``."""
        return self.wrong_key()

    def ranked(self, body: dict[str, Any], limit: int | None = None) -> list[tuple[int, float]]:
        """Index and score of the documents, best first."""
        return ranking(body["query"], body[self.documents_key], limit)


class Body:
    """The body of a request, to be checked member by member. Each method refuses what is wrong."""

    def __init__(self, provider: Provider, members: dict[str, Any]) -> None:
        self._provider = provider
        self.members = members

    def refuse(self, where: str, message: str) -> NoReturn:
        """Refuse it for what a member is.

        Raises:
            Refusal: always.
        """
        refuse(self._provider.invalid(where, message, self.members.get(where)), f"{where}: {message}")

    def keys(self, required: Collection[str], optional: Collection[str], *, others: bool = False) -> None:
        """The members it must have and may have; ``others`` lets any pass."""
        for key in required:
            if key not in self.members:
                self.refuse(key, "field required")
        for key in self.members:
            if key not in required and key not in optional and not others:
                self.refuse(key, "unknown field")

    def text(self, key: str, *, blank: bool = True, at_most: int | None = None) -> None:
        """A string, if it is there."""
        if key not in self.members:
            return
        value = self.members[key]
        if not isinstance(value, str):
            self.refuse(key, "must be a string")
        if not blank and not value.strip():
            self.refuse(key, "must not be blank")
        if at_most is not None and len(value) > at_most:
            self.refuse(key, f"must have at most {at_most} characters")

    def whole(self, key: str, low: int, high: int | None = None, *, null: bool = False) -> None:
        """A whole number from ``low`` to ``high``, if it is there."""
        value = self.members.get(key)
        if key not in self.members or (null and value is None):
            return
        if type(value) is not int:
            self.refuse(key, "must be an integer")
        if value < low or (high is not None and value > high):
            self.refuse(key, f"must be at least {low}" + (f" and at most {high}" if high is not None else ""))

    def flag(self, key: str, *, null: bool = False) -> None:
        """True or false, if it is there."""
        value = self.members.get(key)
        if key in self.members and not isinstance(value, bool) and not (null and value is None):
            self.refuse(key, "must be true or false")

    def texts(self, key: str, *, at_most: int | None, empty: bool = True, characters: int | None = None) -> list[str]:
        """A list of one string or more."""
        values = self.members[key]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self.refuse(key, "must be a list of strings")
        if not values:
            self.refuse(key, "must not be empty")
        if at_most is not None and len(values) > at_most:
            self.refuse(key, f"must have at most {at_most} entries, has {len(values)}")
        if not empty and "" in values:
            self.refuse(key, "must not hold an empty string")
        if characters is not None and any(len(value) > characters for value in values):
            self.refuse(key, f"each must have at most {characters} characters")
        return values

    def one_of(self, key: str, values: Collection[Any]) -> None:
        """One of some values, if it is there."""
        if key in self.members and self.members[key] not in values:
            self.refuse(key, f"must be one of {', '.join(map(repr, values))}")


def refuse(reply: Reply, reason: str) -> NoReturn:
    """Refuse a request.

    Raises:
        Refusal: always.
    """
    raise Refusal(reply, reason)


class FastAPI(Provider):
    """A service that leaves the look at the body's shape to FastAPI."""

    def invalid(self, where: str, message: str, value: Any) -> Reply:
        """FastAPI's."""
        return Reply(422, fastapi_list(where, message, value))

    def wrong_type(self, request: Request) -> Reply:
        """FastAPI takes the body for a string."""
        return self.invalid("body", "must be an object", request.raw.decode(errors="replace"))

    def not_json(self) -> Reply:
        """FastAPI's."""
        return self.invalid("body", "JSON decode error", {})


def fastapi_list(where: str, message: str, value: Any) -> dict[str, Any]:
    """The body of FastAPI's 422: it repeats what was sent."""
    return {"detail": [{"type": "value_error", "loc": ["body", where], "msg": message, "input": value}]}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
