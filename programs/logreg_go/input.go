package main

import (
	"fmt"
	"math"
	"os"
)

// Model is what is trained: a weight for every feature, and an intercept.
type Model struct {
	W []float64 `json:"w"`
	B float64   `json:"b"`
}

// Dataset holds the samples: n numbers of x after another's, and a label of 0 or 1 each.
type Dataset struct {
	x []float64
	y []byte
	n int
}

func (d *Dataset) sample(row int) []float64 { return d.x[row*d.n : (row+1)*d.n] }

// Hyperparams say how to train.
type Hyperparams struct {
	epochs, lr, batchSize, l2, seed, logSamples float64
}

func readModel() *Model {
	r, ok := openInput("/in/model.json", "MODEL_DATA")
	if !ok {
		fail("no model: there is neither /in/model.json nor MODEL_DATA")
	}
	var model Model
	var hasW, hasB bool
	for r.enter('{'); r.more('}'); {
		switch key := r.key(); {
		case key == "w" && !hasW:
			model.W, hasW = r.numbers(nil, "w"), true
		case key == "b" && !hasB:
			model.B, hasB = r.number("b"), true
		case key == "version":
			r.skip()
		default:
			fail("model: this program trains one w and one b; the model has \"%s\"", key)
		}
	}
	r.end()
	if !hasW || !hasB {
		fail("model: it must be {\"w\": [numbers], \"b\": number}")
	}
	if len(model.W) == 0 {
		fail("model: w is empty")
	}
	return &model
}

func readDataset(n int) *Dataset {
	r, ok := openInput("/in/dataset.json", "DATASET_DATA")
	if !ok {
		fail("no dataset: there is neither /in/dataset.json nor DATASET_DATA")
	}
	data := &Dataset{n: n}
	hasData := false
	for r.enter('{'); r.more('}'); {
		if r.key() == "data" && !hasData {
			for r.enter('['); r.more(']'); {
				data.readSample(r)
			}
			hasData = true
		} else {
			r.skip()
		}
	}
	r.end()
	if !hasData {
		fail("dataset: it must be {\"data\": [{\"x\": [numbers], \"y\": 0 or 1}, ...]}")
	}
	if len(data.y) == 0 {
		fail("dataset: it has no samples")
	}
	return data
}

func (d *Dataset) readSample(r *reader) {
	before, row := len(d.x), len(d.y)
	var hasX, hasY bool
	for r.enter('{'); r.more('}'); {
		switch key := r.key(); {
		case key == "x" && !hasX:
			d.x, hasX = r.numbers(d.x, "x"), true
		case key == "y" && !hasY:
			y := r.number("y")
			if y != 0 && y != 1 {
				fail("dataset: y of sample %d is %g; labels are 0 or 1", row, y)
			}
			d.y, hasY = append(d.y, byte(y)), true
		default:
			r.skip()
		}
	}
	if !hasX {
		fail("dataset: sample %d has no x", row)
	}
	if !hasY {
		fail("dataset: sample %d has no y", row)
	}
	if count := len(d.x) - before; count != d.n {
		fail("dataset: x of sample %d has %d numbers; w of the model has %d", row, count, d.n)
	}
}

func readHyperparams() *Hyperparams {
	given := &Hyperparams{epochs: 1, lr: 0.01, batchSize: 16}
	fields := map[string]*float64{
		"epochs": &given.epochs, "lr": &given.lr, "batch_size": &given.batchSize, "l2": &given.l2, "seed": &given.seed,
		"log_samples": &given.logSamples,
	}
	if r, ok := openInput("/in/hyperparams.json", "HYPERPARAMS"); ok && !r.word("null") {
		for r.enter('{'); r.more('}'); {
			key := r.key()
			if field := fields[key]; field != nil {
				*field = r.number(key)
				continue
			}
			fmt.Fprintf(os.Stderr, "warning: hyperparameter '%s' is not known to this program and changes nothing\n", key)
			r.skip()
		}
		r.end()
	}
	given.check()
	return given
}

func (h *Hyperparams) check() {
	whole := func(value float64) bool { return value == math.Floor(value) }
	switch {
	case h.epochs < 1 || h.epochs > 1e6 || !whole(h.epochs):
		fail("hyperparams: epochs is %g; it must be a whole number from 1 to 1000000", h.epochs)
	case h.lr <= 0:
		fail("hyperparams: lr is %g; it must be above 0", h.lr)
	case h.batchSize < 0 || !whole(h.batchSize):
		fail("hyperparams: batch_size is %g; it must be a whole number, 0 for all samples", h.batchSize)
	case h.l2 < 0:
		fail("hyperparams: l2 is %g; it must not be negative", h.l2)
	case math.Abs(h.seed) > 1<<53 || !whole(h.seed):
		fail("hyperparams: seed is %g; it must be a whole number", h.seed)
	}
}
