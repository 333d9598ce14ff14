"""Build every network of a recipe once, before anything is trained: a misspelt backbone must not cost hours."""

from ich.models.registry import build
from ich.models.slices import Shape
from ich.pipeline.state import Plan
from ich.recipe import Backbone, Training


def untrainable(plan: Plan, classes: int, values: str) -> dict[str, str]:
    """Return what is wrong with each network that cannot be trained, by section and name, such as cnn.resnet.

    classes: their number. values: hu or grey. Initial weights are loaded too, unless a model is trained already or
    starts from another.
    """
    recipe, shape = plan.recipe, Shape(classes, values, plan.recipe.image.size)
    sizes, found = dict[str, int](), dict[str, str]()
    for name in (*recipe.pretrain, *recipe.models):
        settings = plan.settings_of(name)
        if not isinstance(settings, Training) or not sizes.keys() >= set(settings.input_models(recipe)):
            continue
        folds = (None,) if name in recipe.pretrain else plan.fold_numbers
        if isinstance(settings, Backbone) and (
            getattr(settings, "start", None) or all(plan.finished(plan.fold(name, fold)) for fold in folds)
        ):
            settings = settings.model_copy(update={"pretrained": False, "weights": None})
        try:
            sizes[name] = build(settings).try_network(shape, sizes)
        except ValueError as error:
            found[f"{settings.stage}.{name}"] = str(error)
    return found
