package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
)

const (
	blockSize   = 1 << 16
	longest     = 400 // bytes of a number
	mostNested  = 64
	longestName = 64 // what is kept of a longer key
)

// reader takes a JSON document apart piece by piece, so that a dataset of any size is never in memory as text. What
// is not valid ends the program with a line that names the document and the place.
type reader struct {
	name  string
	in    *bufio.Reader
	next  byte // not taken yet
	over  bool // there is no next
	at    int  // the place of next
	first bool // nothing of the innermost array or object was taken yet
	text  []byte
}

// openInput opens the variable of a name, which has the same as the file where it is set, or else the file; ok tells
// whether there is anything.
func openInput(path, variable string) (r *reader, ok bool) {
	if text := os.Getenv(variable); text != "" {
		return newReader(variable, strings.NewReader(text)), true
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false
	}
	if err != nil {
		fail("%s: cannot be read", path)
	}
	return newReader(path, file), true
}

func newReader(name string, in io.Reader) *reader {
	r := &reader{name: name, in: bufio.NewReaderSize(in, blockSize), at: -1}
	r.advance()
	return r
}

// advance takes a byte; next is then the one that follows, 0 at the end.
func (r *reader) advance() {
	next, err := r.in.ReadByte()
	if err != nil && err != io.EOF {
		fail("%s: cannot be read", r.name)
	}
	r.next, r.over = next, err == io.EOF
	r.at++
}

func (r *reader) blankThen() byte {
	for r.next == ' ' || r.next == '\n' || r.next == '\t' || r.next == '\r' {
		r.advance()
	}
	return r.next
}

func (r *reader) unexpected(wanted string) {
	if r.over {
		fail("%s: not valid JSON: it ends where %s is expected", r.name, wanted)
	}
	fail("%s: not valid JSON: %s is expected at byte %d", r.name, wanted, r.at)
}

func (r *reader) take(wanted byte) {
	if r.blankThen() != wanted {
		r.unexpected(string(wanted))
	}
	r.advance()
}

// end checks that nothing follows the document.
func (r *reader) end() {
	r.blankThen()
	if !r.over {
		r.unexpected("nothing more")
	}
}

// enter takes the bracket that opens an array or object; more tells whether another element follows.
func (r *reader) enter(opening byte) {
	r.take(opening)
	r.first = true
}

func (r *reader) more(closing byte) bool {
	first := r.first
	r.first = false
	if r.blankThen() == closing {
		r.advance()
		return false
	}
	if !first {
		r.take(',')
	}
	return true
}

// string takes a string and gives its first bytes, escapes as they stand.
func (r *reader) string() string {
	r.take('"')
	r.text = r.text[:0]
	for r.next != '"' {
		c := r.next
		if c < 0x20 {
			r.unexpected("the end of a string")
		}
		if len(r.text) < longestName {
			r.text = append(r.text, c)
		}
		r.advance()
		if c == '\\' { // whatever follows is part of the string, a quote too
			if r.next < 0x20 {
				r.unexpected("the end of a string")
			}
			r.advance()
		}
	}
	r.advance()
	return string(r.text)
}

func (r *reader) key() string {
	key := r.string()
	r.take(':')
	return key
}

func (r *reader) word(word string) bool {
	if r.blankThen() != word[0] {
		return false
	}
	for i := range word {
		if r.next != word[i] {
			r.unexpected("a value")
		}
		r.advance()
	}
	return true
}

func (r *reader) keep() {
	if len(r.text) == longest {
		r.unexpected("a shorter number")
	}
	r.text = append(r.text, r.next)
	r.advance()
}

// digits keeps the digits that follow and gives their number.
func (r *reader) digits() (count int) {
	for r.next >= '0' && r.next <= '9' {
		r.keep()
		count++
	}
	return count
}

// number takes a number; what names it in errors. ParseFloat takes more than JSON allows, so the form is checked here.
func (r *reader) number(what string) float64 {
	r.text = r.text[:0]
	if r.blankThen() == '-' {
		r.keep()
	}
	leading := len(r.text)
	count := r.digits()
	if count == 0 {
		r.unexpected("a number (" + what + ")")
	}
	if count > 1 && r.text[leading] == '0' {
		r.unexpected("no leading zero")
	}
	if r.next == '.' {
		r.keep()
		if r.digits() == 0 {
			r.unexpected("a digit")
		}
	}
	if r.next == 'e' || r.next == 'E' {
		r.keep()
		if r.next == '-' || r.next == '+' {
			r.keep()
		}
		if r.digits() == 0 {
			r.unexpected("a digit")
		}
	}
	value, err := strconv.ParseFloat(string(r.text), 64)
	if err != nil {
		fail("%s: %s has a number too large for a double: %.30s", r.name, what, r.text)
	}
	return value
}

// numbers appends an array of numbers to values.
func (r *reader) numbers(values []float64, what string) []float64 {
	for r.enter('['); r.more(']'); {
		values = append(values, r.number(what))
	}
	return values
}

// skip takes a value of any kind.
func (r *reader) skip() { r.skipNested(0) }

func (r *reader) skipNested(depth int) {
	if depth == mostNested {
		r.unexpected("less nesting")
	}
	switch c := r.blankThen(); {
	case c == '{':
		for r.enter('{'); r.more('}'); {
			r.key()
			r.skipNested(depth + 1)
		}
	case c == '[':
		for r.enter('['); r.more(']'); {
			r.skipNested(depth + 1)
		}
	case c == '"':
		r.string()
	case c == '-' || c >= '0' && c <= '9':
		r.number("a value")
	default:
		if !r.word("true") && !r.word("false") && !r.word("null") {
			r.unexpected("a value")
		}
	}
}
