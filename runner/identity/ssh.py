"""Key pairs for SSH: made here, so that the private half need never leave, and read for their public half."""

from __future__ import annotations

from runner.core.errors import UsageError


def generate() -> str:
    """Return a new ed25519 private key as OpenSSH writes it."""
    from cryptography.hazmat.primitives import serialization  # lazy: cryptography costs tens of milliseconds
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return private.decode("ascii")


def public_of(private: str, comment: str) -> str:
    """Return the line for `authorized_keys` that belongs to a private key; `UsageError` where it is none we can use."""
    from cryptography.exceptions import UnsupportedAlgorithm  # lazy, as above
    from cryptography.hazmat.primitives import serialization

    data = private.encode("utf-8", "surrogatepass")
    fault, hint = "that is not a private key", "give the file that ssh-keygen wrote, not the one that ends in .pub"
    for load in (serialization.load_ssh_private_key, serialization.load_pem_private_key):
        try:
            key = load(data, None)
        except (TypeError, UnsupportedAlgorithm):  # the first is how a missing passphrase is told
            fault, hint = (
                "the private key has a passphrase, or is of a kind that is not known",
                ("take the passphrase off a copy: ssh-keygen -p, or let `--generate` make a key"),
            )
            continue
        except ValueError:
            continue
        try:
            line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        except (UnsupportedAlgorithm, ValueError, TypeError):
            break
        return f"{line.decode('ascii')} {comment}"
    raise UsageError(fault, hint=hint)
