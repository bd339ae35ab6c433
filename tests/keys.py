"""Key pairs for tests: a private key, and its public half in a folder of trusted keys."""

from pathlib import Path

from blastwatch import signing
from blastwatch.signing import Signer


def add_key(folder: Path, role: str, name: str) -> Signer:
    """Make a key that the folder trusts for a role; its private half lies at `private_of(folder, name)`."""
    private = private_of(folder, name)
    signing.make_private(private)
    public = folder / role / f"{name}.pem"
    public.parent.mkdir(parents=True, exist_ok=True)
    public.write_text(signing.pem_of(private))
    return Signer(signing._load_private(private))


def private_of(folder: Path, name: str) -> Path:
    return folder / "private" / f"{name}.pem"
