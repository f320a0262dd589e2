CREATE TABLE items (id bigint PRIMARY KEY, shop_id bigint, name varchar(50), code varchar(10), amount int, size enum('s','m'), note text);
CREATE TABLE shops (id bigint PRIMARY KEY);
