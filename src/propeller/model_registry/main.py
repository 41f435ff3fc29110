"""The model registry's process."""

import asyncio

from propeller.fl.tensors import TensorError
from propeller.model_registry.api import create_api
from propeller.model_registry.service import ModelRegistry
from propeller.model_registry.settings import ModelRegistrySettings
from propeller.model_registry.store import ModelStore
from propeller.process.run import StartError
from propeller.web.auth import verifier
from propeller.web.server import Bind, check_exposure, serve


async def main(settings: ModelRegistrySettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        StartError: the port or the folder cannot be had, or the initial model is not one.
    """
    check_exposure(
        "model-registry", settings.host, authenticated=settings.auth == "on", insecure=settings.insecure
    )
    try:
        registry = ModelRegistry(ModelStore(settings.folder), cache_bytes=settings.cache_bytes)
        await registry.seed(settings.read_initial_model())
    except OSError as error:
        raise StartError(f"MODELS_DIR {settings.folder} cannot be used: {error.strerror}") from None
    except TensorError as error:
        raise StartError(f"REGISTRY_INITIAL_MODEL: {error}") from None
    app = create_api(registry, verify=verifier(settings), max_body=settings.max_bytes)
    await serve([(Bind("model-registry", settings.host, settings.port, "REGISTRY_PORT"), app)], stop)
