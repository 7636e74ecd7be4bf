"""The camera demo: frames from a source, an artifact's answer, and where both are shown.

It runs on the device: nothing here imports torch or an exporter. OpenCV is needed for cameras, streams and
videos alone, Starlette and uvicorn for the web view.
"""
