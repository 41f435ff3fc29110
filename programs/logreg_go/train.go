package main

import (
	"encoding/binary"
	"hash/fnv"
	"math"
	"os"
)

// Fit says how well a model does on a dataset.
type Fit struct {
	loss, accuracy float64
}

func (m *Model) logit(x []float64) float64 {
	sum := m.B
	for i, w := range m.W {
		sum += w * x[i]
	}
	return sum
}

// measure gives the mean log loss, log(1 + e^z) - y z, in the form that neither overflows nor loses digits.
func (m *Model) measure(data *Dataset) (fit Fit) {
	for row, label := range data.y {
		z, y := m.logit(data.sample(row)), float64(label)
		fit.loss += math.Max(z, 0) - y*z + math.Log1p(math.Exp(-math.Abs(z)))
		if (z > 0) == (label == 1) {
			fit.accuracy++
		}
	}
	rows := float64(len(data.y))
	return Fit{fit.loss / rows, fit.accuracy / rows}
}

func (m *Model) isFinite() bool {
	sum := m.B - m.B // 0, or NaN if it is not finite
	for _, w := range m.W {
		sum += w - w
	}
	return sum == 0
}

// train runs the epochs; every batch is one step against its mean gradient. It returns how many steps were done.
func (m *Model) train(data *Dataset, given *Hyperparams) int {
	rows := len(data.y)
	batch := rows
	if given.batchSize > 0 && given.batchSize < float64(rows) {
		batch = int(given.batchSize)
	}
	random := newRandom(given)
	order := make([]int, rows)
	for row := range order {
		order[row] = row
	}
	gradient := make([]float64, data.n)
	steps := 0
	for epoch := 1; epoch <= int(given.epochs); epoch++ {
		random.shuffle(order)
		for start := 0; start < rows; start += batch {
			end := start + batch
			if end > rows {
				end = rows
			}
			m.step(data, order[start:end], gradient, given)
			steps++
		}
		if !m.isFinite() {
			fail("training diverged in epoch %d: the model is not finite; use a smaller lr than %g", epoch, given.lr)
		}
	}
	return steps
}

func (m *Model) step(data *Dataset, rows []int, gradient []float64, given *Hyperparams) {
	gradientB, size := 0.0, float64(len(rows))
	for i := range gradient {
		gradient[i] = 0
	}
	for _, row := range rows {
		x := data.sample(row)
		excess := 1/(1+math.Exp(-m.logit(x))) - float64(data.y[row])
		for i, value := range x {
			gradient[i] += excess * value
		}
		gradientB += excess
	}
	for i := range m.W {
		m.W[i] -= given.lr * (gradient[i]/size + given.l2*m.W[i])
	}
	m.B -= given.lr * gradientB / size
}

// random is SplitMix64 (Steele, Lea and Flood, 2014), begun with the FNV-1a hash of the seed and the base model's
// reference, so that the order of samples does not depend on ids that differ from run to run.
type random struct{ state uint64 }

func newRandom(given *Hyperparams) *random {
	begin := fnv.New64a()
	begin.Write(binary.LittleEndian.AppendUint64(nil, uint64(int64(given.seed))))
	begin.Write([]byte(os.Getenv("MODEL_URI")))
	return &random{begin.Sum64()}
}

func (r *random) next() uint64 {
	r.state += 0x9E3779B97F4A7C15
	z := r.state
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// shuffle is Fisher-Yates; the high half of a product maps 32 random bits to 0..i with a bias below i / 2^32.
func (r *random) shuffle(order []int) {
	for i := len(order) - 1; i > 0; i-- {
		j := int((r.next() >> 32) * uint64(i+1) >> 32)
		order[i], order[j] = order[j], order[i]
	}
}
