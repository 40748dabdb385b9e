"""Check a study's networks before its first run: a mistake in an encoder's name or size ends it at once."""

from collections.abc import Sequence

from classify.config import ClassifyConfig
from classify.image_settings import ImagesConfig
from pretrain.config import PretrainConfig
from segment.config import SegmentConfig
from sweep.study.grid import Job
from sweep.study.jobs import is_done


def require_networks(jobs: Sequence[Job]) -> None:
    """Raise a UserError unless the encoders of all unfinished runs take images of the training size.

    Each network is run once on shapes alone. The runs check the sizes of whole slices as well.
    """
    from encoders.build import require_image_size  # torch is slow to import
    from encoders.decoders import require_segmenter
    from pretrain.stages import require_network

    for config in (job.config for job in jobs if not is_done(job)):
        if isinstance(config, PretrainConfig):
            require_network(config)
        elif isinstance(config, SegmentConfig):
            require_segmenter(config.encoder, config.norm, config.decoder, (config.image_size, config.image_size))
        elif isinstance(config, ClassifyConfig):
            require_image_size(config.encoder, config.norm, config.image_size, config.clip_frames)
        elif isinstance(config, ImagesConfig):
            require_image_size(config.encoder, config.norm, config.image_size)
