// Logreg is logistic regression by mini-batch stochastic gradient descent, as a federated-learning program: what
// ../logreg_c does, in Go.
//
// In: /in/model.json {"w": [n numbers], "b": number}, /in/dataset.json {"data": [{"x": [n numbers], "y": 0 or 1}, ...]}
// and /in/hyperparams.json {"epochs": 1, "lr": 0.01, "batch_size": 16, "l2": 0, "seed": 0,
// "log_samples": 0} (the defaults); or the same in the variables MODEL_DATA, DATASET_DATA and HYPERPARAMS, where those are set. Also ROUND_ID, PROPLET_ID, MODEL_URI
// and FL_MODE (train or evaluate).
//
// Out: one JSON document on standard output; a log on standard error.
//
// It minimises mean log loss + l2/2 |w|^2 (b is not penalised); the losses reported are without the penalty. The same
// data, base model and seed give the same update.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
)

const shown = 64 // numbers of a vector in a log line

// Result is the document that the coordinator takes; without an update it is that of an evaluation.
type Result struct {
	RoundID      string             `json:"round_id"`
	PropletID    string             `json:"proplet_id"`
	BaseModelURI string             `json:"base_model_uri"`
	NumSamples   int                `json:"num_samples"`
	Metrics      map[string]float64 `json:"metrics"`
	Steps        int                `json:"steps,omitempty"`
	Update       *Model             `json:"update,omitempty"`
}

// fail ends the program with one line that says why.
func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "error: "+format+"\n", arguments...)
	os.Exit(1)
}

func logf(format string, arguments ...any) { fmt.Fprintf(os.Stderr, format+"\n", arguments...) }

// numbersOf writes the first numbers of a vector as the log shows them.
func numbersOf(values []float64, verb, comma string) string {
	var text strings.Builder
	for i, value := range values {
		if i == shown {
			return text.String() + comma + "..."
		}
		if i > 0 {
			text.WriteString(comma)
		}
		fmt.Fprintf(&text, verb, value)
	}
	return text.String()
}

// evaluates tells what FL_MODE asks for, once everything that a task needs is there.
func evaluates() bool {
	if os.Getenv("ROUND_ID") == "" {
		fail("ROUND_ID is not set: this program runs as a task of a round")
	}
	if os.Getenv("PROPLET_ID") == "" {
		fail("PROPLET_ID is not set")
	}
	mode := os.Getenv("FL_MODE")
	if mode != "" && mode != "train" && mode != "evaluate" {
		fail("FL_MODE is %s; it must be train or evaluate", mode)
	}
	return mode == "evaluate"
}

func main() {
	evaluate := evaluates()
	given, model := readHyperparams(), readModel()
	data := readDataset(len(model.W))
	logf("Loaded dataset with %d samples from Local Data Store", len(data.y))
	logf("DEBUG: Initial model - w: [%s], b: %f", numbersOf(model.W, "%f", ", "), model.B)
	if given.logSamples != 0 { // samples stay on the device, and out of its log, unless asked for
		logf("DEBUG: First sample - x: [%s], y: %d", numbersOf(data.sample(0), "%f", ", "), data.y[0])
	}

	before := model.measure(data)
	result := Result{
		RoundID:      os.Getenv("ROUND_ID"),
		PropletID:    os.Getenv("PROPLET_ID"),
		BaseModelURI: os.Getenv("MODEL_URI"),
		NumSamples:   len(data.y),
		Metrics:      map[string]float64{"loss": before.loss, "accuracy": before.accuracy},
	}
	if !evaluate {
		result.Steps = model.train(data, given)
		after := model.measure(data)
		result.Update = model
		result.Metrics = map[string]float64{
			"loss": after.loss, "accuracy": after.accuracy, "loss_before": before.loss, "accuracy_before": before.accuracy,
		}
		logf("DEBUG: Final model after training - w: [%s], b: %f", numbersOf(model.W, "%f", ", "), model.B)
		logf("DEBUG: Update payload: {\"w\":[%s],\"b\":%v}", numbersOf(model.W, "%v", ","), model.B)
		logf("loss %.6f -> %.6f, accuracy %.4f -> %.4f", before.loss, after.loss, before.accuracy, after.accuracy)
	}
	if loss := result.Metrics["loss"]; math.IsInf(loss, 0) || math.IsNaN(loss) {
		fail("the loss is not finite; use a smaller lr than %g", given.lr)
	}
	write(&result)
}

func write(result *Result) {
	out := bufio.NewWriter(os.Stdout)
	if err := json.NewEncoder(out).Encode(result); err != nil {
		fail("the result cannot be written: %v", err)
	}
	if err := out.Flush(); err != nil {
		fail("the result cannot be written: %v", err)
	}
}
