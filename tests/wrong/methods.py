"""Wrong methods: trainings and acquisitions."""

from __future__ import annotations

from wrong import Wrong

HEAD = """
import random

import numpy as np
import torch

from harness.learning.contract import Acquisition, Training, highest
from harness.learning.fit import fit
from harness.settings import Strict
"""

SCORE = """
def describe(self, network, batch, prepared):
    return {"score": network(batch.images).logits.amax(1)}
"""


def scored(text: str) -> str:
    """Return an acquisition's text with a correct ``describe`` in front of it."""
    return SCORE.strip() + "\n\n" + text.strip()


CLASSES = [
    Wrong(
        "needs_a_text",
        "Acquisition",
        scored('needs = "a trained classifier"'),
        '"a trained classifier"',
        'frozenset({"a trained classifier"})',
        "needs must be a frozenset of texts; got the text 'a trained classifier'",
    ),
    Wrong(
        "scores_images_none",
        "Acquisition",
        scored("scores_images = None"),
        "None",
        "True",
        "scores_images must be a bool; got None",
    ),
    Wrong(
        "gives_a_list",
        "Training",
        'gives = ["a trained classifier"]',
        '["a trained classifier"]',
        'frozenset({"a trained classifier"})',
        "gives must be a frozenset of texts; got list of 1",
    ),
    Wrong(
        "describe_without_prepared",
        "Acquisition",
        """
        def describe(self, network, batch):  # here
            return {"score": network(batch.images).logits.amax(1)}
        """,
        "network, batch)",
        "network, batch, prepared)",
        "describe must accept the arguments (network, batch, prepared); it accepts (network, batch)",
    ),
    Wrong(
        "loss_without_progress",
        "Training",
        """
        def loss(self, outputs, targets):  # here
            return torch.nn.functional.cross_entropy(outputs.logits, targets)
        """,
        "targets):",
        "targets, progress):",
        "loss must accept the arguments (outputs, targets, progress); it accepts (outputs, targets)",
    ),
    Wrong(
        "select_is_no_method",
        "Acquisition",
        scored("select = 3"),
        "3",
        "Acquisition.select",
        "select must be a method that accepts (columns, labelled, budget, generator); got 3",
    ),
    Wrong(
        "draws_first_of_an_object",
        "Acquisition",
        scored(
            """
def draws_first(self, settings):  # here
    return False
"""
        ),
        "def draws_first(self",
        "@classmethod\n    def draws_first(cls",
        "draws_first must be a @classmethod that accepts (settings)",
    ),
    Wrong(
        "init_without_super",
        "Acquisition",
        scored(
            """
def __init__(self, settings, num_classes):  # here
    self.settings = settings
"""
        ),
        "self.settings = settings",
        "super().__init__(settings, num_classes)",
        "__init__ must call super().__init__(settings, num_classes)",
    ),
    Wrong(
        "init_raises",
        "Acquisition",
        scored(
            """
def __init__(self, settings, num_classes):
    super().__init__(settings, num_classes)
    self.steps = settings.steps  # here
"""
        ),
        "settings.steps",
        "3",
        "__init__ raises AttributeError: 'Settings' object has no attribute 'steps'",
    ),
    Wrong(
        "draws_first_a_number",
        "Acquisition",
        scored(
            """
@classmethod
def draws_first(cls, settings):  # here
    return 0
"""
        ),
        "return 0",
        "return False",
        "draws_first must return a bool; got 0",
    ),
]
"""Mistakes that are found when a trial is opened."""

CONFIGS = [
    Wrong(
        "settings_of_no_kind",
        "Acquisition",
        """
        class Settings:
            steps = 3

        def describe(self, network, batch, prepared):
            return {"score": network(batch.images).logits.amax(1)}
        """,
        "class Settings:\n        steps = 3",
        "class Settings(Strict):\n        steps: int = 3",
        "Settings must be a subclass of Strict",
    ),
    Wrong(
        "needed_a_set",
        "Acquisition",
        scored(
            """
@classmethod
def needed(cls, settings):  # here
    return {"a trained classifier"}
"""
        ),
        'return {"a trained classifier"}',
        'return frozenset({"a trained classifier"})',
        "needed must return a frozenset of texts; got set",
    ),
    Wrong(
        "labels_unknown",
        "Training",
        """
        @classmethod
        def labels(cls, settings):  # here
            return frozenset({"boxes"})
        """,
        '{"boxes"}',
        '{"images"}',
        "labels must return IMAGES, MAPS or both; got ['boxes']",
    ),
    Wrong(
        "extra_passes_negative",
        "Acquisition",
        scored(
            """
@classmethod
def extra_passes(cls, settings, recipe, labelled, candidates):  # here
    return labelled - candidates
"""
        ),
        "labelled - candidates",
        "labelled + candidates",
        "extra_passes must return an int of at least 0; got -110",
    ),
    Wrong(
        "extra_passes_a_fraction",
        "Training",
        """
        @classmethod
        def extra_passes(cls, settings, recipe, labelled, candidates):  # here
            return candidates / 2
        """,
        "/ 2",
        "// 2",
        "extra_passes must return an int of at least 0; got 75.0",
    ),
]
"""Mistakes that are found when a config is read."""

TRAININGS = [
    Wrong(
        "loss_is_nan",
        "Training",
        """
        def loss(self, outputs, targets, progress):  # here
            return outputs.logits.mean() * float("nan")
        """,
        'float("nan")',
        "1.0",
        "loss must lead to finite numbers; cycle 0, epoch 0, training step 0: the loss is nan; a lower learning rate "
        "(recipe.learning_rate or the method's own) or, for ISDA, a lower lambda_0 usually fixes this",
    ),
    Wrong(
        "make_a_list",
        "Training",
        """
        def make(self, cycle):  # here
            return [torch.nn.Linear(3, 1)]
        """,
        "[torch.nn.Linear(3, 1)]",
        "torch.nn.Linear(3, 1)",
        "make must return a torch.nn.Module or None; got list of 1",
    ),
    Wrong(
        "make_elsewhere",
        "Training",
        """
        def make(self, cycle):  # here
            return torch.nn.Linear(3, 1, device="meta")
        """,
        ', device="meta"',
        "",
        "make must return a module on the cycle's device; expected cpu, 'weight' is on meta",
    ),
    Wrong(
        "modules_a_module",
        "Training",
        """
        def make(self, cycle):
            return torch.nn.Linear(3, 1)

        def modules(self):  # here
            return self.module
        """,
        "return self.module",
        "return [self.module]",
        "modules must return a list of modules; got Linear",
    ),
    Wrong(
        "state_a_number",
        "Training",
        """
        def state(self):  # here
            return {"steps": 3}

        def load_state(self, state):
            pass
        """,
        "3}",
        "torch.tensor(3)}",
        "state must return a dict of tensors; 'steps' is 3",
    ),
    Wrong(
        "state_a_tensor",
        "Training",
        """
        def state(self):  # here
            return torch.tensor(3)
        """,
        "torch.tensor(3)",
        '{"steps": torch.tensor(3)}',
        "state must return a dict of tensors; got int64 []",
    ),
    Wrong(
        "batch_images_alone",
        "Training",
        """
        def batch(self, images, labels, generator):  # here
            return images
        """,
        "return images",
        "return images, labels",
        "batch must return (images, targets); got float32 [16, 1, 8, 8]",
    ),
    Wrong(
        "batch_flat",
        "Training",
        """
        def batch(self, images, labels, generator):  # here
            return images.flatten(1), labels
        """,
        ".flatten(1)",
        ".flip(3)",
        "batch must return images [B, channels, H, W], floating; got float32 [16, 64]",
    ),
    Wrong(
        "batch_fewer_images",
        "Training",
        """
        def batch(self, images, labels, generator):  # here
            return images[:-1], labels
        """,
        "images[:-1]",
        "images",
        "batch must return as many targets as images; got 15 images and 16 targets",
    ),
    Wrong(
        "batch_double",
        "Training",
        """
        def batch(self, images, labels, generator):  # here
            return images.double(), labels
        """,
        "images.double()",
        "images",
        "batch must return images in the type that it gets, float32; got float64 [16, 1, 8, 8]",
    ),
    Wrong(
        "batch_soft_targets",
        "Training",
        """
        def batch(self, images, labels, generator):  # here
            return images, torch.nn.functional.one_hot(labels, 10).float()
        """,
        "torch.nn.functional.one_hot(labels, 10).float()",
        "labels",
        "batch must return targets like the labels that it gets, int64 [16], unless loss is its own; got float32 "
        "[16, 10]",
    ),
    Wrong(
        "batch_three_channels",
        "Training",
        """
        def batch(self, images, labels, generator):  # here
            return images.repeat(1, 3, 1, 1), labels
        """,
        "(1, 3, 1, 1)",
        "(1, 1, 1, 1)",
        "batch must return images like those that it gets; expected 1 channels on cpu, "
        "got float32 [16, 3, 8, 8] on cpu",
    ),
    Wrong(
        "loss_for_each_image",
        "Training",
        """
        def loss(self, outputs, targets, progress):  # here
            return torch.nn.functional.cross_entropy(outputs.logits, targets, reduction="none")
        """,
        ', reduction="none"',
        "",
        "loss must return a floating tensor [] (a mean); got float32 [16]",
    ),
    Wrong(
        "loss_a_number",
        "Training",
        """
        def loss(self, outputs, targets, progress):  # here
            return 2.5
        """,
        "2.5",
        "torch.nn.functional.cross_entropy(outputs.logits, targets)",
        "loss must return a floating tensor [] (a mean); got 2.5",
    ),
    Wrong(
        "loss_detached",
        "Training",
        """
        def loss(self, outputs, targets, progress):  # here
            return torch.nn.functional.cross_entropy(outputs.logits.detach(), targets)
        """,
        ".detach()",
        "",
        "loss must return a loss with a gradient; it is detached from the outputs",
    ),
    Wrong(
        "loss_raises",
        "Training",
        """
        def loss(self, outputs, targets, progress):
            wanted = torch.nn.functional.one_hot(targets, 3)  # here
            return -(outputs.logits.log_softmax(1) * wanted).sum(1).mean()
        """,
        "targets, 3)",
        "targets, 10)",
        "loss raises RuntimeError: Class values must be smaller than num_classes.",
    ),
    Wrong(
        "fit_without_a_loss",
        "Training",
        """
        def fit(self, cycle):  # here
            fit(cycle, self)
        """,
        "fit(cycle, self)",
        "return fit(cycle, self)",
        "fit must return a finite float, the last epoch's mean loss; got None",
    ),
    Wrong(
        "fit_nan",
        "Training",
        """
        def fit(self, cycle):  # here
            return fit(cycle, self) * float("nan")
        """,
        ' * float("nan")',
        "",
        "fit must return a finite float, the last epoch's mean loss; got nan",
    ),
    Wrong(
        "fit_another_network",
        "Training",
        """
        def fit(self, cycle):  # here
            cycle.network = cycle.new_network(3)
            return fit(cycle, self)
        """,
        "cycle.network = cycle.new_network(3)",
        "cycle.network.load_state_dict(cycle.new_network(3).state_dict())",
        "fit must train cycle.network in place; it replaces cycle.network",
    ),
    Wrong(
        "fit_to_infinity",
        "Training",
        """
        def fit(self, cycle):  # here
            loss = fit(cycle, self)
            cycle.network.classifier.weight.data[0] /= 0
            return loss
        """,
        "/= 0",
        "/= 2",
        "fit must lead to finite numbers; cycle 0, after the last step: 'body.fc.weight' of the target network has NaN "
        "or infinite values; a lower learning rate (recipe.learning_rate or the method's own) or, for ISDA, a lower "
        "lambda_0 usually fixes this",
    ),
    Wrong(
        "predict_no_numbers",
        "Training",
        """
        def predict(self, network, images):  # here
            return [network(images).logits * float("nan")]
        """,
        'float("nan")',
        "2",
        "predict must lead to finite numbers; cycle 0, after the last step: the class scores of test images are NaN; "
        "a lower learning rate (recipe.learning_rate or the method's own) or, for ISDA, a lower lambda_0 usually fixes "
        "this",
    ),
    Wrong(
        "predict_a_tensor",
        "Training",
        """
        def predict(self, network, images):  # here
            return network(images).logits
        """,
        "network(images).logits",
        "[network(images).logits]",
        "predict must return a list of class scores, one entry per head; got float32 [64, 10]",
    ),
    Wrong(
        "predict_classes",
        "Training",
        """
        def predict(self, network, images):  # here
            return [network(images).logits.argmax(1)]
        """,
        ".argmax(1)",
        "",
        "predict must return floating scores [B, C, *s]; got int64 [64]",
    ),
    Wrong(
        "predict_nine_classes",
        "Training",
        """
        def predict(self, network, images):  # here
            return [network(images).logits[:, 1:]]
        """,
        "[:, 1:]",
        "",
        "predict must return scores [B, C, *s]; expected 64 images and 10 classes, got float32 [64, 9]",
    ),
    Wrong(
        "predict_from_the_global_stream",
        "Training",
        """
        def predict(self, network, images):  # here
            return [network(images).logits + torch.rand(1) * 0]
        """,
        " + torch.rand(1) * 0",
        "",
        "predict must not draw from the global random stream of torch; draw from a torch.Generator of its own",
    ),
    Wrong(
        "replaced_names",
        "Training",
        """
        def replaced(self, network):  # here
            return ["classifier"]
        """,
        '["classifier"]',
        "[network.classifier.weight]",
        "replaced must return parameters of the network; got list of 1",
    ),
]
"""Mistakes of trainings."""

ACQUISITIONS = [
    Wrong(
        "first_too_few",
        "Acquisition",
        scored(
            """
@classmethod
def draws_first(cls, settings):
    return True

def first(self, cycle):  # here
    return cycle.labelled[1:]
"""
        ),
        "[1:]",
        ".flip(0)",
        "first must return 40 indices of training images; got 39",
    ),
    Wrong(
        "first_outside",
        "Acquisition",
        scored(
            """
@classmethod
def draws_first(cls, settings):
    return True

def first(self, cycle):  # here
    return torch.arange(290, 330)
"""
        ),
        "290, 330",
        "260, 300",
        "first must return indices of training images of 0..299; got 300",
    ),
    Wrong(
        "prepare_a_list",
        "Acquisition",
        scored(
            """
def prepare(self, cycle):  # here
    return [cycle.network.classifier.weight]
"""
        ),
        "[cycle.network.classifier.weight]",
        '{"weight": cycle.network.classifier.weight.detach()}',
        "prepare must return a dict of tensors; got list of 1",
    ),
    Wrong(
        "prepare_with_a_gradient",
        "Acquisition",
        scored(
            """
def prepare(self, cycle):  # here
    return {"weight": cycle.network.classifier.weight}
"""
        ),
        "weight}",
        "weight.detach()}",
        "prepare must return tensors without gradients; call .detach() on 'weight'",
    ),
    Wrong(
        "prepare_shrinks_the_target",
        "Acquisition",
        scored(
            """
def prepare(self, cycle):  # here
    cycle.network.classifier.weight.data *= 0.5
    return {}
"""
        ),
        "cycle.network.classifier.weight.data *= 0.5",
        "cycle.network.classifier.weight.data * 0.5",
        "prepare must leave the networks as they are; it changes body.fc.weight of the target network",
    ),
    Wrong(
        "prepare_freezes_the_target",
        "Acquisition",
        scored(
            """
def prepare(self, cycle):  # here
    cycle.network.requires_grad_(False)
    return {}
"""
        ),
        "False",
        "True",
        "prepare must leave the networks as they are; it changes requires_grad of the target network",
    ),
    Wrong(
        "prepare_keeps_a_hook",
        "Acquisition",
        scored(
            """
def prepare(self, cycle):  # here
    handle = cycle.network.classifier.register_forward_hook(print)
    cycle.network.train(cycle.network.training)
    return {}
"""
        ),
        "cycle.network.train(cycle.network.training)",
        "handle.remove()",
        "prepare must leave the networks as they are; it changes the hooks of the target network",
    ),
    Wrong(
        "prepare_in_training_mode",
        "Acquisition",
        scored(
            """
def prepare(self, cycle):  # here
    cycle.network.train()
    return {}
"""
        ),
        "cycle.network.train()",
        "cycle.network.eval()",
        "prepare must leave the networks as they are; it changes training or evaluation mode of the target network",
    ),
    Wrong(
        "describe_a_tensor",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return network(batch.images).logits.amax(1)
        """,
        "network(batch.images).logits.amax(1)",
        '{"score": network(batch.images).logits.amax(1)}',
        "describe must return a dict of tensors; got float32 [64]",
    ),
    Wrong(
        "describe_a_row_too_few",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"score": network(batch.images).logits.amax(1)[1:]}
        """,
        "[1:]",
        "",
        "describe must return columns with one row per image; expected 64 rows in 'score', got 63",
    ),
    Wrong(
        "describe_column_of_rows",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"score": network(batch.images).logits.amax(1)[:, None]}
        """,
        ".amax(1)[:, None]",
        ".amax(1)",
        "describe must return one score per image, [64]; 'score' is float32 [64, 1]",
    ),
    Wrong(
        "describe_a_mean",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"score": network(batch.images).logits.mean()}
        """,
        "mean()",
        "mean(1)",
        "describe must return columns with one row per image; expected 64 rows in 'score', got a number",
    ),
    Wrong(
        "describe_an_index",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"index": batch.index, "score": network(batch.images).logits.amax(1)}
        """,
        '"index": batch.index, ',
        "",
        "describe must not return a column 'index': the harness adds it",
    ),
    Wrong(
        "describe_classes_as_scores",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"score": network(batch.images).logits.argmax(1)}
        """,
        "argmax(1)",
        "amax(1)",
        "describe must return floating scores; 'score' is int64 [64]",
    ),
    Wrong(
        "describe_no_score",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"scores": network(batch.images).logits.amax(1)}
        """,
        '"scores"',
        '"score"',
        "describe must return a column 'score', which the default select ranks; its columns are 'scores'",
    ),
    Wrong(
        "describe_nothing",
        "Acquisition",
        "formerly = ''",
        "formerly = ''",
        SCORE.strip().replace("\n", "\n    "),
        "describe must return a column 'score', which the default select ranks; its columns are none",
    ),
    Wrong(
        "describe_nan",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            score = network(batch.images).logits.amax(1)
            return {"score": score.where(batch.index != 40, float("nan"))}
        """,
        'float("nan")',
        "0.0",
        "describe must return finite columns; 'score' is nan for 1 images, such as image 40",
    ),
    Wrong(
        "describe_infinite",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            logits = network(batch.images).logits
            return {"score": -logits.amax(1), "logits": logits.where(batch.index[:, None] != 40, float("-inf"))}
        """,
        'float("-inf")',
        "0.0",
        "describe must return finite columns; 'logits' is -inf for 1 images, such as image 40",
    ),
    Wrong(
        "describe_with_a_gradient",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            with torch.enable_grad():
                return {"score": network(batch.images).logits.amax(1)}
        """,
        "amax(1)}",
        "amax(1).detach()}",
        "describe must return tensors without gradients; call .detach() on 'score'",
    ),
    Wrong(
        "describe_in_bfloat16",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"score": network(batch.images).logits.amax(1).bfloat16()}
        """,
        ".bfloat16()",
        ".bfloat16().float()",
        "describe must return no bfloat16 tensors, which workers can't send; call .float() on 'score'",
    ),
    Wrong(
        "describe_elsewhere",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"score": network(batch.images).logits.amax(1).to("meta")}
        """,
        '.to("meta")',
        ".to(batch.index.device)",
        "describe must return columns on the images' device; expected cpu, 'score' is on meta",
    ),
    Wrong(
        "describe_other_columns",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            outputs = network(batch.images)
            more = {"features": outputs.features} if len(batch.index) == 64 else {}
            return {"score": outputs.logits.amax(1), **more}
        """,
        " if len(batch.index) == 64 else {}",
        "",
        "describe must return the same columns for all batches; not all have 'features'",
    ),
    Wrong(
        "describe_padded",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            logits = network(batch.images).logits
            return {"score": logits.amax(1), "gram": logits @ logits.T}
        """,
        "logits @ logits.T",
        "logits[:, :, None] * logits[:, None]",
        "describe must return rows of one shape and type for all batches; 'gram' has rows float32 [64] and "
        "float32 [22]",
    ),
    Wrong(
        "describe_counts_on_the_target",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            network.train()
            return {"score": network(batch.images).logits.amax(1)}
        """,
        "network.train()",
        "network.eval()",
        "describe must leave the networks as they are; it changes body.bn1.running_mean of the target network",
    ),
    Wrong(
        "describe_from_the_global_stream",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):  # here
            return {"score": torch.rand(len(batch.index))}
        """,
        "len(batch.index))",
        "len(batch.index), generator=batch.generator)",
        "describe must not draw from the global random stream of torch; draw from batch.generator",
    ),
    Wrong(
        "describe_raises",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):
            return {"score": prepared["weights"] @ network(batch.images).logits.T}  # here
        """,
        'prepared["weights"]',
        "torch.ones(10)",
        "describe raises KeyError: 'weights'",
    ),
    Wrong(
        "over_positions_keeps_them",
        "Acquisition",
        """
        def describe(self, network, batch, prepared):
            return {"score": batch.images[:, 0]}

        def over_positions(self, scores):  # here
            return scores
        """,
        "return scores",
        "return scores.amax(1)",
        "over_positions must return one floating score per image; expected [64], got float32 [64, 64]",
    ),
    Wrong(
        "select_a_list",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):  # here
    return highest(columns["score"], budget).tolist()
"""
        ),
        ".tolist()",
        "",
        "select must return row numbers as int64 [20]; got list of 20",
    ),
    Wrong(
        "select_a_mask",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):  # here
    score = columns["score"]
    return score >= score.sort(descending=True).values[budget - 1]
"""
        ),
        "return score >= score.sort(descending=True).values[budget - 1]",
        "return score.sort(descending=True).indices[:budget]",
        "select must return row numbers as int64 [20]; got bool [150]",
    ),
    Wrong(
        "select_too_many",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):  # here
    return highest(columns["score"], 2 * budget)
"""
        ),
        "2 * budget",
        "budget",
        "select must return 20 row numbers; got 40",
    ),
    Wrong(
        "select_indices_of_images",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):  # here
    return columns["index"][-budget:]
"""
        ),
        'columns["index"][-budget:]',
        'torch.arange(len(columns["index"]))[-budget:]',
        "select must return row numbers of 0..149; got 263",
    ),
    Wrong(
        "select_with_replacement",
        "Acquisition",
        """
        scores_images = False
        needs = frozenset()

        def select(self, columns, labelled, budget, generator):  # here
            return torch.zeros(budget, dtype=torch.int64)
        """,
        "torch.zeros(budget, dtype=torch.int64)",
        "torch.arange(budget)",
        "select must return different row numbers; got 0 twice",
    ),
    Wrong(
        "select_from_numpys_stream",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):  # here
    return torch.from_numpy(np.random.permutation(len(columns["score"]))[:budget])
"""
        ),
        "np.random.permutation(",
        "np.random.default_rng(3).permutation(",
        "select must not draw from the global random stream of numpy; draw from its generator",
    ),
    Wrong(
        "select_from_pythons_stream",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):  # here
    return torch.tensor(random.sample(range(len(columns["score"])), budget))
"""
        ),
        "random.sample(",
        "random.Random(3).sample(",
        "select must not draw from the global random stream of random; draw from its generator",
    ),
    Wrong(
        "select_raises",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):
    return torch.stack([labelled()["score"], columns["score"]]).argsort()[:budget]  # here
"""
        ),
        'torch.stack([labelled()["score"], columns["score"]]).argsort()[:budget]',
        'columns["score"].argsort()[:budget]',
        "select raises RuntimeError: stack expects each tensor to be equal size, but got [40] at entry 0 and [150] at "
        "entry 1",
    ),
    Wrong(
        "select_exits",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):
    if len(columns["score"]) > budget:
        raise SystemExit(3)  # here
    return highest(columns["score"], budget)
"""
        ),
        "> budget",
        "< budget",
        "select raises SystemExit: 3",
    ),
    Wrong(
        "select_panics",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):
    if len(columns["score"]) > budget:
        raise GeneratorExit  # here
    return highest(columns["score"], budget)
"""
        ),
        "> budget",
        "< budget",
        "select raises GeneratorExit",
    ),
    Wrong(
        "select_writes_into_the_indices",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):  # here
    columns["index"].zero_()
    return highest(columns["score"], budget)
"""
        ),
        'columns["index"].zero_()',
        'columns["index"].clone().zero_()',
        "select must not write into columns['index']; copy it first, with .clone()",
    ),
    Wrong(
        "select_writes_past_torch",
        "Acquisition",
        scored(
            """
def select(self, columns, labelled, budget, generator):  # here
    columns["index"].numpy()[:] = 0
    return highest(columns["score"], budget)
"""
        ),
        'columns["index"].numpy()',
        'columns["index"].clone().numpy()',
        "select must select different candidates; a hook has changed their indices",
    ),
    Wrong(
        "prepare_writes_into_the_cycle",
        "Acquisition",
        scored(
            """
def prepare(self, cycle):  # here
    cycle.labelled.zero_()
    return {}
"""
        ),
        "cycle.labelled.zero_()",
        "cycle.labelled.clone().zero_()",
        "prepare must not write into cycle.labelled; copy it first, with .clone()",
    ),
    Wrong(
        "describe_writes_into_the_batch",
        "Acquisition",
        """
def describe(self, network, batch, prepared):  # here
    batch.index.zero_()
    return {"score": network(batch.images).logits.amax(1)}
""",
        "batch.index.zero_()",
        "batch.index.clone().zero_()",
        "describe must not write into batch.index; copy it first, with .clone()",
    ),
    Wrong(
        "describe_sparse",
        "Acquisition",
        """
def describe(self, network, batch, prepared):  # here
    return {"score": network(batch.images).logits.amax(1).to_sparse()}
""",
        ".to_sparse()",
        "",
        "describe must return dense tensors; 'score' is sparse",
    ),
    Wrong(
        "describe_raises_what_can_not_be_printed",
        "Acquisition",
        """
class Unprintable(Exception):
    def __str__(self):
        raise ValueError("x")

def describe(self, network, batch, prepared):
    if network is not None:
        raise self.Unprintable  # here
    return {"score": network(batch.images).logits.amax(1)}
""",
        "is not None",
        "is None",
        "describe raises Unprintable",
    ),
]
"""Mistakes of acquisitions."""
