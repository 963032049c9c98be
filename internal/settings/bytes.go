package settings

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes in the settings; 0 is written none.
type ByteSize int64

// byteUnits are the units of a ByteSize, the largest first.
var byteUnits = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

func parseBytes(text string) (ByteSize, error) {
	wrong := fmt.Errorf("%q: want a size such as 512MiB, 4GiB or 1TiB, or none", text)
	if text == "none" {
		return 0, nil
	}
	for _, unit := range byteUnits {
		number, ok := strings.CutSuffix(text, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 1 || n > math.MaxInt64/unit.size {
			return 0, wrong
		}
		return ByteSize(n * unit.size), nil
	}
	return 0, wrong
}

// checkBytes refuses a limit that a few of the largest messages fill.
func checkBytes(b ByteSize) error {
	const least ByteSize = 1 << 20
	if b != 0 && b < least {
		return fmt.Errorf("%s: want %s or more, or none", b, least)
	}
	return nil
}

// String writes b as parseBytes reads it.
func (b ByteSize) String() string {
	if b == 0 {
		return "none"
	}
	for _, unit := range byteUnits {
		if int64(b)%unit.size == 0 {
			return strconv.FormatInt(int64(b)/unit.size, 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}
