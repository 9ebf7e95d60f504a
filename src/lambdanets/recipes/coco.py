"""COCO as in the paper: Mask R-CNN on a LambdaResNet, from scratch."""

from lambdanets.data import CocoConfig
from lambdanets.detection import DetectionConfig, DetectorConfig
from lambdanets.recipes.registry import recipe
from lambdanets.train import EngineConfig, OptimizerConfig, ScheduleConfig

STEPS, GLOBAL_BATCH, WARMUP = 130_000, 256, 1_000  # steps, images of a step, steps of warm-up
IMAGES = 118_287  # of train2017
STEPS_PER_EPOCH = IMAGES // GLOBAL_BATCH


@recipe("coco")
def coco() -> DetectionConfig:
    """Mask R-CNN with a LambdaResNet-101, boxes and masks, from scratch.

    Follows: Table 6 and appendix E.2: 130,000 steps of 256 images, crops of 1024x1024 out of images scaled by
        0.1 to 2.0, synchronised batch norms, learning rate 0.32 after 1,000 steps of warm-up, a tenth after
        90, 95 and 97.5 % of the steps, weight decay 4e-5. Momentum 0.9, and torchvision's pyramid, anchors
        and heads with batch norms in them, as the paper does not say. With fewer images in a step
        (data.batch_size, devices, engine.accumulate) the learning rate is scaled in proportion. The other
        rows are other models: --model lambda_resnet152, resnet101_rs, resnet101_rs_se, resnet152_rs or
        resnet152_rs_se.
    Expect: box AP 49.4, mask AP 43.5 (published, Table 6; not trained here).
    Needs: GPUs; the paper used 128 TPUv3 cores. data.batch_size images on each GPU; 64 GPUs of 4 images make
        the 256. Its training speed was not measured here.
    Command: lambdanets train coco --data coco:/data/coco --devices 8
    """
    return DetectionConfig(
        recipe="coco",
        model=DetectorConfig(name="lambda_resnet101"),
        data=CocoConfig(
            source="coco:coco",
            image_size=1024,
            scale=(0.1, 2.0),
            crop=True,
            batch_size=4,
            workers=8,
            # Some of COCO's boxes have no area, and some reach over the edge.
            on_bad_annotation="skip",
        ),
        optimizer=OptimizerConfig(
            name="momentum", lr=0.32, lr_batch=GLOBAL_BATCH, momentum=0.9, weight_decay=4e-5
        ),
        schedule=ScheduleConfig(
            name="steps", warmup_epochs=round(WARMUP / STEPS_PER_EPOCH, 3), drops=(0.9, 0.95, 0.975)
        ),
        engine=EngineConfig(
            epochs=round(STEPS / STEPS_PER_EPOCH),
            precision="bf16-mixed",
            sync_batchnorm=True,
            channels_last=True,
            validate_every=10,
        ),
    )
