"""What trainers share beside their few settings, in option nodes: how it is trained, the data, validation, class images and a new word."""

from dataclasses import fields, replace

import comfy.samplers
from comfy_api.latest import io

from ..training import settings
from ..training.augmentation import Augmentation
from ..training.dreambooth import RATIOS, Preservation, ratio_of
from ..training.objectives import TIMESTEPS, WEIGHTINGS
from ..training.optimizers import OPTIMIZERS, SCHEDULES
from ..training.textual_inversion import Word
from .host.training import dreambooth as host
from .host.training import slider
from .host.training.memory import CHECKPOINTING
from .host.training.pair_folder import PairFolder, training_pairs
from .inputs import sockets
from .inputs import training as inputs
from .inputs.fit import training_fit
from .inputs.widgets import auto_cfg, auto_number, auto_whole, choice, number, only_with, schema, switch, text, whole


def _output(socket, name: str) -> list:
    return [socket.Output(display_name=name, tooltip="For the input of this name of any trainer.")]


class TrainingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        own = settings.TrainingOptions
        average = "Save the average of the last 1 / (1 - average) steps. 0 = the last. -1 = auto: 0.99 for classifiers, else 0."
        warmup = "Steps over which the learning rate rises from 0. 0 = none. Typical: 0–100. -1 = auto: 50 for classifiers, else 10."
        weighting = "How errors count: 'own' as the model predicts, 'min-snr' less where there is little noise, 'clean' of the denoised image, as ComfyUI's."
        timesteps = "Noise levels: 'uniform' as SD1.5, 'logit-normal' as SD3, 'shifted' to noise; 'auto': logit-normal for flow, else uniform."
        optimizer = "AdamW; Adafactor, same rates in less memory; or SGD with momentum, at 10–1000 times the rate."
        memory = "Run blocks again in the backward pass: same result, far less memory, a third slower. 'auto' = only if memory is short."
        return schema(
            "TrainingOptions", "Training Options", "training",
            ["optimizer", "learning rate schedule", "gradient checkpointing", "gradient accumulation", "min snr", "ema", "timesteps"],
            "How a trainer takes its steps and at which noise levels. All trainers take it; not connected, its defaults count.",
            inputs=[
                choice("optimizer", OPTIMIZERS, optimizer, own.optimizer),
                choice("schedule", SCHEDULES, "How the learning rate falls after the warm-up: to 0 along a cosine or a line, or not at all.",
                    own.schedule),
                whole("warmup", own.warmup, -1, 100_000, warmup),
                whole("accumulate", own.accumulate, 1, 1024, "Batches in one step: a batch that much larger in the memory of one. 1 = off."),
                number("average", own.average, -1.0, 0.9999, average, 0.001, round=0.0001),
                choice("checkpointing", CHECKPOINTING, memory, own.checkpointing),
                choice("timesteps", ("auto", *TIMESTEPS), timesteps, own.timesteps),
                choice("weighting", WEIGHTINGS, weighting, own.weighting),
                only_with(inputs.number("gamma", own.gamma, 0.01, 1000.0, "With 'min-snr': SNR at which the weight stops growing. Paper: 5.",
                    0.1), "weighting", "min-snr"),
                inputs.number("start_percent", own.start_percent, 0.0, 0.99, "Train on noise levels from this percent of the sampling on. 0 = "
                    "from pure noise."),
                inputs.number("end_percent", own.end_percent, 0.01, 1.0, "Train on noise levels up to this percent of the sampling. 1 = to the "
                    "clean image."),
            ],
            outputs=_output(sockets.TrainingOptions, "training_options"),
        )  # fmt: skip

    @classmethod
    def execute(cls, **given) -> io.NodeOutput:
        return io.NodeOutput(settings.TrainingOptions(**given))


class DatasetOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        own, change = settings.Data, Augmentation
        captions = (
            "What each image shows, instead of the instance prompt: a list, or one a line; variants between | take turns. Empty = none. Train "
            "Embedding puts them into its templates."
        )
        dropout = (
            "How often an image is trained without its caption: with an empty prompt, or (Train Embedding) the template alone. 0 = never. "
            "Typical: 0–0.1. -1 = auto: 0.1 for embeddings, else 0."
        )
        hints = "With variants: share to scale down or up, said in the prompt ('very small', 'close up', ...). 0 = none. Paper: 1."
        return schema(
            "DatasetOptions", "Dataset Options", "training",
            ["captions", "training masks", "caption dropout", "augmentation", "flip augmentation", "random crop"],
            "Captions, masks and changes of the images that a trainer learns from. A trainer that cannot use one of them says so.",
            is_input_list=True,
            inputs=[
                io.Mask.Input("masks", optional=True, tooltip="Where the subject is: only this area is trained. One per image, or one for all."),
                text("captions", "", captions, multiline=True),
                switch("flip", own.flip, "Also train on mirrored images. Not for asymmetric subjects."),
                number("caption_dropout", own.caption_dropout, -1.0, 0.99, dropout),
                whole("variants", change.variants, 0, 1000, "Changed copies of each image to train on too, encoded once. 0 = none. Typical: "
                    "4–30."),
                number("crop", change.crop, 0.0, 0.9, "With variants: largest share of each side to cut off. 0 = none. Typical: 0.1–0.3."),
                number("jitter", change.jitter, 0.0, 1.0, "With variants: change of brightness, contrast and saturation. 0 = none. Typical: "
                    "0.05–0.2."),
                number("scale", change.scale, 0.0, 1.0, hints),
                inputs.clean_dropout("clean_caption_dropout", "caption_dropout", "a caption is"),
                training_fit(own.fit),
            ],
            outputs=_output(sockets.DatasetOptions, "dataset_options"),
        )  # fmt: skip

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given = inputs.first(lists)
        captions, masks = map(tuple, inputs.lists_of(lists, "captions", "masks"))
        captions = captions if any(map(str.strip, captions)) else ()
        kept = {k: given[k] for k in ("flip", "caption_dropout", "clean_caption_dropout", "fit")}
        changes = Augmentation(**{f.name: given[f.name] for f in fields(Augmentation)})
        return io.NodeOutput(settings.Data(captions=captions, masks=masks, augmentation=changes, **kept))


class ValidationOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        own, k = settings.Validation, comfy.samplers.KSampler
        cfg = "CFG of these images and of class images; of Train Instruction Model the text scale."
        image_scale = "Train Instruction Model's image scale, s_I. Typical: 1–2."
        return schema(
            "ValidationOptions", "Validation Options", "training",
            ["validation images", "sample while training", "preview training", "sample prompt"],
            "How many validation images a trainer makes, when, and how they are sampled. Class images are sampled in the same way.",
            inputs=[
                whole("every", own.every, 0, 1_000_000, "Steps between validation images. 0 = only at the end."),
                whole("count", own.count, 0, 64, "Validation images at a time. 0 = none."),
                whole("steps", own.steps, 1, 10_000, "Sampling steps of an image. Typical: 10–30."),
                auto_cfg(cfg),
                choice("sampler_name", k.SAMPLERS, "ComfyUI's samplers.", own.sampler_name),
                choice("scheduler", k.SCHEDULERS, "ComfyUI's schedulers.", own.scheduler),
                auto_cfg(image_scale, "image_scale", advanced=True),
            ],
            outputs=_output(sockets.ValidationOptions, "validation_options"),
        )  # fmt: skip

    @classmethod
    def execute(cls, **given) -> io.NodeOutput:
        return io.NodeOutput(settings.Validation(**given))


class ClassImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        prompt = "The instance prompt without the new or rare word, as 'a photo of a dog'. Several prompts, one a line, take turns."
        count = "Class images that the model samples itself, if none are connected. Kept on disk for the next run. Typical: 50–1000."
        return schema(
            "ClassImages", "Class Images", "training",
            ["prior preservation", "regularization images", "class images", "class prompt", "dreambooth"],
            "Images of the subject's class, trained beside it, so that the class stays as it was. Connected, or sampled by the model itself.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", optional=True, tooltip="Your own images of the class, instead of sampled ones."),
                text("class_prompt", host.Class.prompt, prompt, multiline=True),
                number("prior_weight", Preservation.weight, 0.0, 100.0, "Weight of class images. 0 = plain fine-tuning. Paper: 1.", 0.05),
                whole("class_count", host.Class.count, 0, 100_000, count),
                choice("ratio", RATIOS, "Images of the subject to class images in a batch; 1:2 keeps the class more strictly."),
                whole("class_batch", host.Class.batch, 1, 1024, "Class images sampled at a time."),
            ],
            outputs=_output(sockets.ClassImages, "class_images"),
        )  # fmt: skip

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given, (images,) = inputs.first(lists), inputs.lists_of(lists, "images")
        preservation = Preservation(given["prior_weight"], ratio_of(given["ratio"]))
        return io.NodeOutput(host.Class(given["class_prompt"], tuple(images), given["class_count"], given["class_batch"], preservation))


class NewWord(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        tip = "The made-up word. Files know it as embedding:name. Several between commas are trained jointly; captions say which is where."
        start = "Start meaning of the word, as 'dog'. Empty = the mean of all words. For several words between commas too."
        rate = "Learning rate of the word, as for SD1.5. Typical: 0.001–0.01."
        return schema(
            "NewWord", "New Word", "training",
            ["pivotal tuning", "placeholder token", "new token", "textual inversion with lora"],
            "A new word for the subject, trained jointly with the weights and saved as an embedding. The instance prompt holds the placeholder.",
            inputs=[
                text("placeholder", Word.placeholder, tip),
                text("initial_words", Word.initial_words, start),
                inputs.vectors(),
                auto_number("word_rate", 0.00001, 100.0, rate, 0.001, round=0.00001),
                *inputs.norms(),
            ],
            outputs=_output(sockets.NewWord, "new_word"),
        )  # fmt: skip

    @classmethod
    def execute(cls, word_rate, **given) -> io.NodeOutput:
        return io.NodeOutput(host.Subject(words=_words(Word(**given)), word_rate=word_rate))


def _words(word: Word) -> tuple[Word, ...]:
    """The words between commas, with as many initial words or one for all."""
    placeholders, initial = ([t.strip() for t in texts.split(",")] for texts in (word.placeholder, word.initial_words))
    if len(placeholders) < 2:
        return (word,)
    if len(initial) not in (1, len(placeholders)):
        raise ValueError(
            f"There are {len(initial)} initial words for {len(placeholders)} placeholders. Give one for each, between commas, or one "
            "for all."
        )
    starts = initial * (len(placeholders) // len(initial))
    return tuple(replace(word, placeholder=p, initial_words=start) for p, start in zip(placeholders, starts))


def _learn_input() -> io.DynamicCombo.Input:
    """What a slider is trained from, with the settings of each."""
    learn = "'prompts': what a positive and a negative prompt say. 'image pairs': images before and after."
    preserve = "What the slider must not change, as 'man' and 'woman', one a line. It goes before the three prompts, or where they have {}."
    prompts = [
        text("positive", "a very old person", "What the instance prompt comes to at strength 1."),
        text("negative", "a very young person", "What it comes to at strength -1."),
        text("preserve", "", preserve, multiline=True),
        auto_number("guidance", 0.01, 100.0, "Eta: how far strength 1 goes. Paper: 4.", 0.1),
        whole("count", slider.Slider.count, 1, 100_000, "Images of the three prompts that the model samples itself, if the trainer has none. Kept on "
            "disk for the next run. Typical: 24–100."),
        auto_whole("resolution", 16, 4096, "Width and height of these images."),
    ]  # fmt: skip
    pairs = [text("folder", "", "Name of the folder of InstructPix2Pix Pairs. Empty = the connected images.")]
    options = [io.DynamicCombo.Option(*each) for each in zip(slider.LEARN, (prompts, pairs))]
    return io.DynamicCombo.Input("learn", options=options, tooltip=learn)


class ConceptSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "ConceptSlider", "Concept Slider", "training",
            ["concept sliders", "slider lora", "attribute slider", "LECO", "train slider"],
            "Makes Train LoRA (DreamBooth) train a slider: a LoRA whose strength turns an attribute up and, below 0, down. From two prompts, with "
            "no images, or from pairs of images.",
            is_input_list=True,
            inputs=[
                _learn_input(),
                io.Image.Input("before", optional=True, tooltip="With 'image pairs': what strength -1 shows."),
                io.Image.Input("after", optional=True, tooltip="With 'image pairs': what strength 1 shows, in the same order and sizes."),
            ],
            outputs=[sockets.ConceptSlider.Output(display_name="concept_slider", tooltip="For Train LoRA (DreamBooth).")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, learn, **lists):
        name = (learn.get("folder") or [""])[0].strip()
        return PairFolder(name).fingerprint() if name else ""

    @classmethod
    def execute(cls, learn, **lists) -> io.NodeOutput:
        given, ends = learn[0], inputs.lists_of(lists, "before", "after")
        if given["learn"] == slider.LEARN[1]:
            before, after, _ = training_pairs(given["folder"], *ends, [])
            return io.NodeOutput(slider.Slider(slider.LEARN[1], before=before, after=after))
        if any(ends):
            raise ValueError("Images before and after are connected, but learn is 'prompts'. Set it to 'image pairs', or disconnect them.")
        return io.NodeOutput(slider.Slider(**given | {"preserve": tuple(given["preserve"].splitlines())}))


NODES = [TrainingOptions, DatasetOptions, ValidationOptions, ClassImages, NewWord, ConceptSlider]
