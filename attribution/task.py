"""What one data set asks of the scripts."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GlueTask:
    """What one data set asks of the scripts; everything else follows from this."""

    columns: tuple[str, ...]  # the text columns, in the order in which BERT reads them
    num_labels: int  # C classes; 1 for regression
    class_names: tuple[str, ...] = ()  # of the classes, in order
    bounds: tuple[float, float] | None = None  # smallest and largest label of a regression
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    max_train_samples: int | None = None
    recipe: dict = field(default_factory=dict)  # training arguments that differ from train.py's defaults

    @property
    def regression(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return self.num_labels == 1
