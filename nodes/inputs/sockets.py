"""The pack's own socket types."""

from comfy_api.latest import io

GuidanceChannel = io.Custom("GUIDANCE_CHANNEL")  # tuple[guidance.multi_cfg.Channel, ...]
GuidanceSchedule = io.Custom("GUIDANCE_SCHEDULE")  # guidance.schedules.Schedule
NoisyClassifier = io.Custom("NOISY_CLASSIFIER")  # guidance.classifier.LabeledClassifier
Inversion = io.Custom("INVERSION")  # nodes.host.inversion.invert.Inversion
IPAdapter = io.Custom("IP_ADAPTER")  # attention.ip_adapter.Adapter
AttentionMaps = io.Custom("ATTENTION_MAPS")  # attention.maps.Maps
P2POptions = io.Custom("P2P_OPTIONS")  # nodes.host.attention.prompt_to_prompt.Options
PairFilter = io.Custom("PAIR_FILTER")  # nodes.host.training.pair_filter.PairFilter
PairOptions = io.Custom("PAIR_OPTIONS")  # nodes.host.training.instruct_pairs.Recipe, without what InstructPix2Pix Pairs itself asks for
PairChecker = io.Custom("PAIR_CHECKER")  # nodes.host.training.pair_filter.Checker: (before, after, prompts) -> a score of each candidate
Curve = io.Custom("CURVE")  # ComfyUI's curve editor: an object with interp(x), x in [0, 1]
TrainingOptions = io.Custom("TRAINING_OPTIONS")  # training.settings.TrainingOptions
DatasetOptions = io.Custom("DATASET_OPTIONS")  # training.settings.Data, without images
ValidationOptions = io.Custom("VALIDATION_OPTIONS")  # training.settings.Validation, without a prompt
ClassImages = io.Custom("CLASS_IMAGES")  # nodes.host.training.dreambooth.Class
NewWord = io.Custom("NEW_WORD")  # nodes.host.training.dreambooth.Subject, without a prompt
ConceptSlider = io.Custom("CONCEPT_SLIDER")  # nodes.host.training.slider.Slider
