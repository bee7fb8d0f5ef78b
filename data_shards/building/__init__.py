"""From COCO, VOC or YOLO annotations to shards, and copies of shards."""
