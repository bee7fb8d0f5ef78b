"""From COCO, VOC or YOLO annotations to shards; moving shards between stores."""
