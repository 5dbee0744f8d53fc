"""What all tests share: 8 CPU devices, a compilation cache, checked shapes, no network."""

import os
import shutil
from pathlib import Path

import jaxtyping
import pytest

from tests import typechecker

ROOT = Path(__file__).parents[1]

# JAX writes cache entries without a lock, so each worker of pytest-xdist has its own folder.
CACHE = ROOT / ".cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main")

# JAX and TensorFlow read these when they are imported; processes that tests start inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Tests compile hundreds of programs and run each a few times: LLVM need not polish them.
    + " --xla_backend_optimization_level=0"
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# In the modules that compute, a call with an array whose shape or dtype contradicts the signature
# is an error. Elsewhere annotations are for readers: a numpy array serves as a Sequence there.
jaxtyping.install_import_hook(
    [
        f"empathy_jax.{name}"
        for name in ("contrastive", "generation", "losses", "masked", "models", "rl")
    ],
    f"{typechecker.__name__}.check",
)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real data and small real weights, which the project does not ship."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real data and weights: {folder} does not exist")
    return folder


CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    """A real browser for the tests of pages: the Chromium on the path, or that of CHROMIUM."""
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        pytest.skip(f"no Chromium: none of {CHROMIUMS} is on the path and CHROMIUM is not set")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def tiny_decoder():
    """Shape of a decoder that compiles in a second: grouped heads, two scanned layers."""
    from empathy_jax.models.decoder import DecoderConfig

    return DecoderConfig(
        vocab_size=64,
        width=16,
        mlp_width=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_positions=128,
    )
