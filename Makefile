# make demo        try everything on a laptop: environment, built-in sample, nine steps, figure, DeepLab
# make demo-wsol   the same for localisation: built-in birds, training, threshold, figure
# make ablation    what each choice of the paper is worth on the sample: table and figure, 30 minutes
# make test        the test suite in the same environment
# make lint        ruff check and format
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEEPLAB := $(BIN)/python deeplab/main.py
DEEPLAB_DEMO := -c deeplab/configs/demo.yaml
WSOL := $(BIN)/python wsol/tools_cam
WSOL_DEMO := --config_file wsol/configs/demo.yaml

.PHONY: demo demo-wsol ablation test lint

demo: $(STAMP)
	$(BIN)/python run_sample.py --preset demo
	$(DEEPLAB) train $(DEEPLAB_DEMO)
	$(DEEPLAB) test $(DEEPLAB_DEMO)
	$(DEEPLAB) crf $(DEEPLAB_DEMO)
	$(DEEPLAB) report $(DEEPLAB_DEMO)
	@echo "the pseudo masks to look at: $(CURDIR)/result/report.html"

demo-wsol: $(STAMP)
	$(WSOL)/train_cam.py $(WSOL_DEMO) --lr 5e-4
	$(WSOL)/test_cam.py $(WSOL_DEMO) TEST.SPLIT train
	$(WSOL)/test_cam.py $(WSOL_DEMO)
	$(WSOL)/visualize.py $(WSOL_DEMO)

ablation: $(STAMP)
	$(BIN)/python -m step.ablation
	@echo "table and figure: $(CURDIR)/result/ablation.md and ablation.png"

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The stamp is written last, so that an interrupted installation is repeated.
$(STAMP): requirements.txt
	@echo "installing requirements.txt into $(VENV) (once, a few GB)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(STAMP)
