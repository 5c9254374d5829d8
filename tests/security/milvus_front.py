"""A gRPC proxy in front of Milvus Lite: TLS, client certificates and tokens, as a Milvus server has them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import trustme


@dataclass
class Front(grpc.GenericRpcHandler):
    """Forwards calls to ``target``, and refuses those without the token, if it has one.

    Its refusal repeats what the client sent, which is the worst that a server can do.
    """

    target: grpc.Channel
    token: str | None = None
    uri: str = ""
    calls: list[tuple[str, str | None]] = field(default_factory=list)
    """Name and authorization of each call, in order."""

    def service(self, details: Any) -> Any:
        given = next((str(own.value) for own in details.invocation_metadata if own.key == "authorization"), None)
        self.calls.append((details.method.rpartition("/")[2], given))
        wanted = None if self.token is None else base64.b64encode(self.token.encode()).decode()

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if wanted is not None and given != wanted:
                sent = base64.b64decode(given or "").decode()
                context.abort(grpc.StatusCode.UNAUTHENTICATED, f"auth check failure: {given} is not known ({sent})")
            try:
                return self.target.unary_unary(details.method)(request, timeout=context.time_remaining())
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def front(
    target: str,
    *,
    token: str | None = None,
    identity: trustme.LeafCert | None = None,
    clients: trustme.CA | None = None,
) -> Iterator[Front]:
    """Run a front on a free port until the block ends.

    Args:
        target: ``host:port`` of the server that answers.
        token: the only one that it accepts; by default it accepts any, and none.
        identity: its certificate; without one it does not speak TLS.
        clients: the CA of client certificates; without one clients need none.
    """
    with grpc.insecure_channel(target) as channel:
        made = Front(channel, token)
        server = grpc.server(ThreadPoolExecutor(max_workers=4), handlers=[made])
        if identity is None:
            made.uri = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        else:
            chain = b"".join(own.bytes() for own in identity.cert_chain_pems)
            credentials = grpc.ssl_server_credentials(
                [(identity.private_key_pem.bytes(), chain)],
                root_certificates=None if clients is None else clients.cert_pem.bytes(),
                require_client_auth=clients is not None,
            )
            made.uri = f"https://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        try:
            yield made
        finally:
            server.stop(None).wait()


def written(certificate: trustme.CA | trustme.LeafCert, folder: Path, name: str) -> dict[str, str]:
    """Write the PEM files of a CA (``ca``) or of a certificate and its key (``client_cert``, ``client_key``)."""
    paths = {"ca": folder / f"{name}.ca.pem"}
    if isinstance(certificate, trustme.CA):
        certificate.cert_pem.write_to_path(str(paths["ca"]))
    else:
        paths = {"client_cert": folder / f"{name}.pem", "client_key": folder / f"{name}.key"}
        paths["client_cert"].write_bytes(b"".join(own.bytes() for own in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(paths["client_key"]))
    return {field: str(path) for field, path in paths.items()}
