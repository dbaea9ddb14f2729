"""What LL4AL, ADS and QBC share: a module that is trained beside the target and then ranks the candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.lazy import torch
from harness.learning.contract import Acquisition, Training
from harness.settings import Strict

from ._restored import Restored

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.learning.cycle import Cycle


class Joint(Training, Acquisition):
    """A method that brings its own training, because it ranks by what that training learns beside the target."""

    class Settings(Strict):
        """No settings."""

    purpose: str
    """Names the random stream of the module's first weights."""

    @classmethod
    def check(cls, settings: Any, training: type[Training], training_settings: Any) -> None:
        """Refuse another training: the score is what this one learns."""
        if not issubclass(training, cls) or settings != training_settings:
            name = cls.__module__.rpartition(".")[2]
            raise ValueError(
                f"{name} ranks by what its own training learns: write just {name}, without another training"
            )

    def __init__(self, settings: Any, num_classes: int) -> None:
        Training.__init__(self, settings, num_classes)
        self.module: Any = None
        """Made in the first cycle that is fitted here."""
        self._carried: dict[str, torch.Tensor] = {}
        self.restored = Restored()

    def make(self, cycle: Cycle) -> torch.nn.Module:
        """Return a new module for the cycle's network."""
        raise NotImplementedError

    def ready(self, cycle: Cycle) -> Any:
        """Return the module, with carried weights or new ones."""
        from ._modules import build

        if self.module is None:
            self.module = build(lambda: self.make(cycle), cycle.key(self.purpose), cycle.device)
            if self._carried:
                self.module.load_state_dict(self._carried)
        return self.module

    def state(self) -> dict[str, torch.Tensor]:
        """Return the module's weights."""
        return self._carried if self.module is None else self.module.state_dict()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the module's weights, once it is made."""
        self._carried = state

    def prepare(self, cycle: Cycle) -> Columns:
        """Return the module's weights."""
        return self.state()

    def extra_parameters(self, cycle: Cycle) -> int:
        """Return the module's parameters."""
        return sum(v.numel() for v in self.state().values())
